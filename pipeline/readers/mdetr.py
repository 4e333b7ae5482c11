"""MDETR's grounding JSON (GoldG: Flickr30k, mixed; GQA; RefCOCO/+/g): boxes with caption spans."""

from __future__ import annotations

from typing import Any

from pipeline.data.keys import row_key
from pipeline.data.resizing import size_of
from pipeline.errors import InputError
from pipeline.readers.base import Format, Header, ImageLocation, LabelCollector, LabelledImage, SetFiles
from pipeline.readers.boxes import xywh_box
from pipeline.readers.coco import add_annotation, stream_sections
from pipeline.readers.fields import ignore_flag, want
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.spans import phrase_of, spans_of, stated_uncertain

WANTED = "MDETR's grounding JSON (an object with the lists `images`, with captions, and `annotations`)"


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the file, all of whose images must have captions."""
    path = files.annotations
    for section, row in stream_sections(path, ("images", "annotations"), WANTED, index):
        if section == "annotations":
            add_annotation(index, row, row.get("tokens_positive"), row.get("bbox"), ignore_flag(row), row.get("phrase"))
            continue
        with index.bad.row():
            number = want(row, "id", f"{path}: images")
            caption = want(row, "caption", f"{path}: image {number}")
            if not isinstance(caption, str):
                raise InputError(f"{path}: image {number}: want a string `caption`; found {caption!r}")
            file = str(want(row, "file_name", f"{path}: image {number}"))
            key, source = row_key(row), row.get("data_source")
            index.image(number, (file, size_of(row), caption, source, key, row.get("uncertain")), key)
    return {}


def location(image_id: Any, image: Any) -> ImageLocation:
    """Location of the image; in the mixed set ``data_source`` names its folder."""
    return ImageLocation(image[0], folder=image[3] if isinstance(image[3], str) else None)


def labelled(entry: Entry, header: Header) -> LabelledImage | None:
    """Convert an entry.

    An image without annotations is excluded, as in MDETR and GLIP (GLIP spec 9.3): every word of
    its caption would be trained as absent. Images written by export-labels are kept, as their
    record was the same. The spans of a region with an invalid box become uncertain. Ignore regions
    need no spans.
    """
    _, size, caption, _, key, uncertain = entry.image
    if not entry.rows and key is None:
        return None
    labels = LabelCollector()
    for tokens, bbox, crowd, text, origin, xyxy in entry.rows:
        spans = () if crowd and not tokens else spans_of(tokens, len(caption), labels.lost)
        if spans is not None:
            phrase = text if isinstance(text, str) else phrase_of(caption, spans)
            labels.add(xywh_box(bbox, size, labels.lost, xyxy), phrase, spans, ignore=crowd, **origin or {})
    stated = stated_uncertain(uncertain, len(caption), labels.lost)
    return labels.image(entry, size, key=key, location=location, caption=caption, uncertain=stated)


FORMAT = Format("grounding", WANTED, fill, labelled, location)
