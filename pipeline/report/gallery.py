"""A self-contained HTML page of labelled images, with boxes and marked phrases in captions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data.records import GroundingRecord
from pipeline.drawing.boxes import Colour, draw_regions, phrase_colours, pick
from pipeline.io.atomic import write_atomic
from pipeline.report.templates import render
from pipeline.report.urls import jpeg_url

Piece = tuple[str, Colour | None, bool]
"""Text of a caption, the colour of its phrase, and whether its phrase is uncertain."""

WIDTH = 360
"""Width of drawn images in pixels."""


def write_gallery(shards: Sequence[str], out: str | Path, *, limit: int, title: str, note: str = "") -> int:
    """Write a page of up to ``limit`` records of training shards; returns their number."""
    items = [figure(image, record) for image, record in pick(shards, limit)]
    write_atomic(out, render("gallery.html", title=title, note=note, items=items))
    return len(items)


def figure(image: Image.Image, record: GroundingRecord) -> dict[str, Any]:
    """An item of figures.html: the drawn image, its caption and its regions."""
    return {
        "key": record.key,
        "image": jpeg_url(draw_regions(image, record, width=WIDTH), quality=88),
        "caption": caption_pieces(record),
        "regions": [r for r in record.regions if not r.ignore],
    }


def caption_pieces(record: GroundingRecord) -> list[Piece]:
    """The caption split at its phrases' spans; where phrases overlap, the first region's wins."""
    caption = record.caption or ""
    marks: list[tuple[Colour | None, bool]] = [(None, False)] * len(caption)
    colours = phrase_colours(record)
    for start, end in record.uncertain:
        marks[start:end] = [(None, True)] * (end - start)
    for region in reversed([r for r in record.regions if not r.ignore]):
        for start, end in region.tokens_positive:
            marks[start:end] = [(colours[region.phrase], False)] * (end - start)
    groups = groupby(zip(caption, marks, strict=True), key=itemgetter(1))
    return [("".join(character for character, _ in group), *mark) for mark, group in groups]
