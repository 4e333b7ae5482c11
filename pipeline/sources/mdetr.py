"""MDETR's grounding JSON (GoldG: Flickr30k Entities, Visual Genome captions, GQA): boxes with spans of a caption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.records import Region, Span
from pipeline.sources.base import Labelled, LabelledSet, box_of, image_key, read_json, size_of, want


def read_mdetr(path: str | Path) -> LabelledSet:
    """All image-caption pairs of the file in id order; the spans are taken as they stand, never searched again.

    Regions are lost as ``bad_box``, ``box_without_area``, ``box_outside_image``, ``no_span`` (no
    ``tokens_positive``), ``span_outside_caption`` or ``unknown_image``. A region goes whole: box and spans together.

    Raises:
        InputError: not MDETR's layout, an image without a caption, or two images of one id; each named.
    """
    path = Path(path)
    data = read_json(path, ("images", "annotations"))
    images = {}
    for image in data["images"]:
        number = want(image, "id", f"{path}: images")
        if number in images:
            raise InputError(f"{path}: image id {number} is there twice")
        if not isinstance(want(image, "caption", f"{path}: image {number}"), str):
            raise InputError(f"{path}: image {number}: caption {image['caption']!r} is no text")
        images[number] = image
    regions: dict[Any, list[Region]] = {number: [] for number in images}
    lost: dict[Any, Counter[str]] = {number: Counter() for number in images}
    homeless: Counter[str] = Counter()
    for row in data["annotations"]:
        number = row.get("image_id")
        if number not in images:
            homeless["unknown_image"] += 1
            continue
        caption = images[number]["caption"]
        spans = _spans(row.get("tokens_positive"), len(caption), lost[number])
        if spans is None:
            continue
        box = box_of(row, size_of(images[number]), lost[number])
        if box is not None:
            phrase = " ".join(caption[start:end] for start, end in spans)
            regions[number].append(
                Region(box=box, phrase=phrase, tokens_positive=spans, ignore=bool(row.get("iscrowd")))
            )
    return LabelledSet(
        kind="grounding",
        images=tuple(
            Labelled(
                key=image_key(number),
                file_name=str(want(images[number], "file_name", f"{path}: image {number}")),
                size=size_of(images[number]),
                caption=images[number]["caption"],
                regions=tuple(regions[number]),
                lost=lost[number],
            )
            for number in sorted(images)
        ),
        lost=homeless,
    )


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
