"""MDETR's grounding JSON (GoldG: Flickr30k Entities, Visual Genome captions, GQA): boxes with spans of a caption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.records import Region, Span
from pipeline.sources.base import ImageTable, LabelledSet, box_of, read_json, want


def read_mdetr(path: str | Path) -> LabelledSet:
    """All image-caption pairs of the file in id order; the spans are taken as they stand, never searched again.

    Regions are lost as ``bad_box``, ``box_without_area``, ``box_outside_image``, ``no_span`` (no
    ``tokens_positive``), ``span_outside_caption`` or ``unknown_image``. A region goes whole: box and spans together.

    Raises:
        InputError: not MDETR's layout, an image without a caption, or two images of one id; each named.
    """
    path = Path(path)
    data = read_json(path, ("images", "annotations"))
    images = ImageTable(data["images"], path)
    for row in data["images"]:
        if not isinstance(want(row, "caption", f"{path}: image {row['id']}"), str):
            raise InputError(f"{path}: image {row['id']}: caption {row['caption']!r} is no text")
    for row in data["annotations"]:
        image = images.of(row)
        if image is None:
            continue
        caption = image.row["caption"]
        spans = _spans(row.get("tokens_positive"), len(caption), image.lost)
        if spans is None:
            continue
        box = box_of(row, image.size, image.lost)
        if box is not None:
            phrase = " ".join(caption[start:end] for start, end in spans)
            ignore = bool(row.get("iscrowd"))
            image.regions.append(Region(box=box, phrase=phrase, tokens_positive=spans, ignore=ignore))
    return images.labelled("grounding")


def _spans(value: Any, length: int, lost: Counter[str]) -> tuple[Span, ...] | None:
    if not isinstance(value, list) or not value:
        lost["no_span"] += 1
        return None
    spans = []
    for pair in value:
        whole = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(v, int) for v in pair)
        if not whole or not 0 <= pair[0] < pair[1] <= length:
            lost["span_outside_caption"] += 1
            return None
        spans.append((pair[0], pair[1]))
    return tuple(spans)
