"""Labelled images for pages: one JPEG, its boxes as SVG, its caption with marked phrases; galleries of them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data.images import ImageError, open_image
from pipeline.drawing.boxes import Colour, phrase_colours
from pipeline.errors import InputError, RunError
from pipeline.inspection.samples import Sample, SampleStore, evenly_spaced, phrases_of
from pipeline.io.atomic import write_atomic
from pipeline.report.templates import render
from pipeline.report.urls import data_url

Piece = tuple[str, str, Colour | None, bool]
"""Text of a caption, its phrase ("" if none), the phrase's colour, and whether the phrase is uncertain."""

SIDE = 1333
"""Longer side of embedded images in pixels, as the detector's."""
VERDICT_COLOURS: dict[str, Colour] = {"right": (17, 114, 57), "wrong": (186, 28, 28), "missed": (140, 82, 0)}
OTHER_COLOURS: dict[str, Colour] = {"gold": (140, 82, 0), "ignored": (90, 97, 110), "dropped": (90, 97, 110)}


def jpeg(data: bytes, side: int | None = None) -> tuple[bytes, tuple[int, int]]:
    """(JPEG as the model sees the image, (height, width) of the whole image).

    side: longer side in pixels to which larger images are reduced.

    Raises:
        ImageError: the image cannot be decoded.
    """
    image = open_image(data)
    size = (image.height, image.width)
    if side is not None and max(size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue(), size


def embedded_figure(sample: Sample, data: bytes) -> dict[str, Any]:
    """:func:`figure` with the image in it. Raises ImageError."""
    content, size = jpeg(data, SIDE)
    return figure(sample, data_url(content, "image/jpeg"), size)


def figure(sample: Sample, source: str, size: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """An item of figures.html. source: URL of the image. size: its (height, width), if known.

    Boxes are listed from the largest to the smallest, so that each can be pointed at.
    """
    height, width = size if sample.size == (0, 0) else sample.size
    colours = phrase_colours(phrases_of(sample.boxes))
    judged = any(box.verdict for box in sample.boxes)
    boxes = [
        {
            "x": round(box.box[0], 2), "y": round(box.box[1], 2), "width": round(box.box[2] - box.box[0], 2),
            "height": round(box.box[3] - box.box[1], 2), "phrase": box.phrase, "score": box.score,
            "area": box.area, "kinds": box.kinds, "gold": box.status == "gold",
            "colour": VERDICT_COLOURS.get(box.verdict) or OTHER_COLOURS.get(box.status) or colours[box.phrase],
        }
        for box in sorted(sample.boxes, key=lambda box: -box.area)
    ]  # fmt: skip
    differs = size != (0, 0) and size != (height, width)
    return {
        "name": sample.name, "source": source, "width": width, "height": height, "boxes": boxes,
        "caption": caption_pieces(sample, {} if judged else colours),
        "note": f"The image has {size[1]} x {size[0]} pixels, its labels are of {width} x {height}." if differs else "",
    }  # fmt: skip


def caption_pieces(sample: Sample, colours: dict[str, Colour]) -> list[Piece]:
    """The caption split at its phrases' spans; where phrases overlap, the first box's wins.

    colours: phrase -> colour; other phrases have none.
    """
    caption = sample.caption or ""
    marks: list[tuple[str, Colour | None, bool]] = [("", None, False)] * len(caption)
    for start, end in sample.uncertain:
        marks[start:end] = [("", None, True)] * len(marks[start:end])
    for box in reversed([box for box in sample.boxes if box.status in ("kept", "gold")]):
        for start, end in box.spans:
            marks[start:end] = [(box.phrase, colours.get(box.phrase), False)] * len(marks[start:end])
    groups = groupby(zip(caption, marks, strict=True), key=itemgetter(1))
    return [("".join(character for character, _ in group), *mark) for mark, group in groups]


def store_figures(store: SampleStore, places: Iterable[tuple[int, int]]) -> list[dict[str, Any]]:
    """Figures of these samples (shard, row); one whose image cannot be had has a note in its place."""
    items = []
    for shard, row in places:
        sample = store.samples(shard)[row]
        try:
            items.append(embedded_figure(sample, store.image(shard, row)))
        except (ImageError, InputError, RunError, OSError) as error:
            items.append(figure(sample, "") | {"note": f"The image cannot be shown: {error}"})
    return items


def write_gallery(
    store: SampleStore, out: str | Path, *, limit: int, title: str, made: dict[str, str], note: str = ""
) -> list[dict[str, Any]]:
    """Write a page of up to ``limit`` samples with boxes; returns their figures."""
    items = store_figures(store, evenly_spaced(store, limit))
    write_atomic(out, render("gallery.html", title=title, note=note, items=items, made=made))
    return items
