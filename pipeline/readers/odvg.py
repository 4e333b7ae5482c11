"""ODVG JSON Lines (Open-GroundingDino, MM-Grounding-DINO): one image a line, detection or
grounding.

Grounding lines must have ``tokens_positive``: phrases are not searched in captions, as they may
occur more than once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.data.keys import image_key, row_key
from pipeline.errors import InputError
from pipeline.readers.base import (
    Format,
    Header,
    ImageLocation,
    LabelCollector,
    LabelledImage,
    SetFiles,
    phrase_of,
    provenance_of,
    size_of,
    spans_of,
    stated_uncertain,
    xyxy_box,
)
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.json_stream import read_object, stream_lines
from pipeline.readers.sniff import describe_row

WANTED = "ODVG JSON Lines (objects with `filename` and `{}`)"
WANTED_CLASSES = 'a label map (a JSON object such as {"0": "person"})'


def _rows(files: SetFiles, kind: str) -> Any:
    wanted = WANTED.format(kind)
    for line, row in stream_lines(files.annotations, wanted):
        if not isinstance(row, dict) or not isinstance(row.get("filename"), str) or not isinstance(row.get(kind), dict):
            raise InputError(f"{files.annotations}: line {line}: want {wanted}; found {describe_row(row)}")
        yield line, row["filename"], size_of(row), row_key(row), row[kind]


def _both(labels: dict[str, Any], name: str) -> Iterator[tuple[bool, dict[str, Any]]]:
    """(is an ignore region, row) of a line's boxes; ``ignore`` is an addition of export-labels."""
    yield from ((False, row) for row in labels.get(name) or ())
    yield from ((True, row) for row in labels.get("ignore") or ())


def fill_detection(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read detection lines; grounding lines are refused."""
    names = read_object(files.companions["classes"], WANTED_CLASSES) if "classes" in files.companions else None
    if names is not None and not all(k.isdigit() and isinstance(v, str) for k, v in names.items()):
        raise InputError(f"{files.companions['classes']}: want {WANTED_CLASSES}; found an object of other values")
    seen: set[str] = set()
    for line, file, size, key, labels in _rows(files, "detection"):
        rows = []
        for ignore, item in _both(labels, "instances"):
            name = item.get("category") if names is None else names.get(str(item.get("label")))
            name = name if isinstance(name, str) and name.strip() else None
            if name is not None:
                seen.add(name)
            rows.append((name, item.get("bbox"), ignore, provenance_of(item) or None))
        index.image(line, (file, size, rows, key, labels.get("verified_absent"), labels.get("not_exhaustive")), key)
    space = sorted(seen) if names is None else [names[k] for k in sorted(names, key=int)]
    return {"label_space": list(dict.fromkeys(name for name in space if name.strip()))}


def fill_grounding(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read grounding lines, each with a caption; detection lines are refused."""
    for line, file, size, key, labels in _rows(files, "grounding"):
        caption = labels.get("caption")
        if not isinstance(caption, str) or not caption:
            raise InputError(f"{files.annotations}: line {line}: want a text `caption`; found {caption!r}")
        rows = []
        for ignore, item in _both(labels, "regions"):
            text = item.get("phrase") if ignore else None
            rows.append((item.get("tokens_positive"), item.get("bbox"), ignore, text, provenance_of(item) or None))
        index.image(line, (file, size, caption, rows, key, labels.get("uncertain")), key)
    return {}


def labelled_detection(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry of a detection line."""
    file, size, rows, key, absent, incomplete = entry.image
    labels = LabelCollector()
    for name, bbox, ignore, origin in rows:
        if name is None:
            labels.lost["unknown_category"] += 1
        else:
            labels.add(xyxy_box(bbox, size, labels.lost), name, ignore=ignore, **origin or {})
    fields = {"verified_absent": _names(absent), "not_exhaustive": _names(incomplete)}
    return labels.image(key or image_key(entry.id), ImageLocation(file), size, **fields)


def _names(value: Any) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) else None


def labelled_grounding(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry of a grounding line. A phrase's ``bbox`` is one box or a list of boxes."""
    file, size, caption, rows, key, uncertain = entry.image
    labels = LabelCollector()
    for tokens, boxes, ignore, text, origin in rows:
        several = isinstance(boxes, list) and bool(boxes) and all(isinstance(b, list) for b in boxes)
        for bbox in boxes if several else [boxes]:
            spans = () if ignore and not tokens else spans_of(tokens, len(caption), labels.lost)
            if spans is not None:
                phrase = text if isinstance(text, str) else phrase_of(caption, spans)
                labels.add(xyxy_box(bbox, size, labels.lost), phrase, spans, ignore=ignore, **origin or {})
    stated = stated_uncertain(uncertain, len(caption), labels.lost)
    return labels.image(key or image_key(entry.id), ImageLocation(file), size, caption=caption, uncertain=stated)


DETECTION = Format(
    "detection", WANTED.format("detection"), fill_detection, labelled_detection,
    companions={"classes": "label map JSON; by default the `category` of each instance is its class name"},
)  # fmt: skip
GROUNDING = Format("grounding", WANTED.format("grounding"), fill_grounding, labelled_grounding)
