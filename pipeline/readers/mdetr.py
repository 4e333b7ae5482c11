"""MDETR's grounding JSON (GoldG: Flickr30k, mixed; GQA; RefCOCO/+/g): boxes with spans of a
caption.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipeline.data.keys import image_key, row_key
from pipeline.data.records import Region, Span
from pipeline.errors import InputError
from pipeline.readers.base import (
    Format,
    Header,
    Labelled,
    Place,
    SetFiles,
    origin_of,
    phrase_of,
    size_of,
    spans_of,
    uncertain_of,
    want,
    xywh_box,
)
from pipeline.readers.index import Entry, Filling
from pipeline.readers.json_stream import stream_object

WANTED = "MDETR's grounding JSON (an object with the lists `images`, with captions, and `annotations`)"


def fill(files: SetFiles, index: Filling) -> dict[str, Any]:
    """Raises InputError: not MDETR's layout, an image without a caption, or two images of one id;
    each named.
    """
    path = files.annotations
    for part, row in stream_object(path, ("images", "annotations"), WANTED):
        if part == "images":
            number = want(row, "id", f"{path}: images")
            caption = want(row, "caption", f"{path}: image {number}")
            if not isinstance(caption, str):
                raise InputError(f"{path}: image {number}: caption {caption!r} is no text")
            file = str(want(row, "file_name", f"{path}: image {number}"))
            key = row_key(row)
            kept = (file, size_of(row), caption, row.get("data_source"), key, row.get("uncertain"))
            index.image(number, kept, key)
        else:
            if not isinstance(row, dict):
                raise InputError(f"{path}: annotations: want objects; found {str(row)[:40]!r}")
            told = (row.get("tokens_positive"), row.get("bbox"), bool(row.get("iscrowd")), row.get("phrase"))
            index.row(row.get("image_id"), (*told, origin_of(row) or None, row.get("xyxy")))
    return {}


def place(number: Any, image: Any) -> Place:
    """``data_source`` of the mixed set says in which folder: Visual Genome's or COCO's."""
    return Place(image[0], folder=image[3] if isinstance(image[3], str) else None)


def labelled(entry: Entry, header: Header) -> Labelled | None:
    """The spans are taken as they stand, never searched again.

    An image without annotations is left out, as MDETR and GLIP do (GLIP spec 9.3): every word of
    its caption would be taught as absent. Not so one that export wrote, where its record stood like
    this.

    Regions are lost as ``bad_box``, ``box_without_area``, ``box_outside_image``, ``no_span`` (no
    ``tokens_positive``) or ``span_outside_caption``. A region goes whole: box and spans together;
    the spans of one whose box is of no use are uncertain. An ignore region needs no spans.
    """
    _, size, caption, _, key, unsure = entry.image
    if not entry.rows and key is None:
        return None
    regions: list[Region] = []
    lost: Counter[str] = Counter()
    boxless: list[Span] = []
    for tokens, bbox, crowd, said, origin, xyxy in entry.rows:
        spans = () if crowd and not tokens else spans_of(tokens, len(caption), lost)
        box = None if spans is None else xywh_box(bbox, size, lost, xyxy)
        if spans is not None and box is None:
            boxless += spans
        elif spans is not None and box is not None:
            phrase = said if isinstance(said, str) else phrase_of(caption, spans)
            regions.append(Region(box=box, phrase=phrase, tokens_positive=spans, ignore=crowd, **origin or {}))
    where = place(entry.id, entry.image)
    return Labelled(
        key or image_key(entry.id), where, size, caption=caption, regions=tuple(regions),
        uncertain=uncertain_of(unsure, len(caption), lost), boxless=tuple(boxless), lost=lost,
    )  # fmt: skip


FORMAT = Format("grounding", WANTED, fill, labelled, place)
