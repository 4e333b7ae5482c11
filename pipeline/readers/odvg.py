"""ODVG JSON Lines (Open-GroundingDino, MM-Grounding-DINO): one image a line, detection or
grounding.

A phrase without ``tokens_positive`` has the span where it occurs in the caption, if it occurs there
once; one that is not there, or several times, is counted as ``no_span``.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.data.keys import image_key, row_key
from pipeline.data.records import Span
from pipeline.data.resizing import size_of
from pipeline.errors import InputError
from pipeline.readers.base import (
    ROW_ERRORS,
    BadRows,
    Format,
    Header,
    ImageLocation,
    LabelCollector,
    LabelledImage,
    SetFiles,
    class_name,
    ignore_flag,
    known_names,
    lose,
    phrase_of,
    provenance_of,
    spans_of,
    stated_uncertain,
    warn_of_unboxed,
    xyxy_box,
)
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.json_stream import read_object, stream_lines
from pipeline.readers.sniff import describe_row

log = logging.getLogger("glip_self_train")
WANTED = "ODVG JSON Lines (objects with `filename` and `{}`)"
WANTED_CLASSES = 'a label map (a JSON object such as {"0": "person"})'


def _rows(files: SetFiles, kind: str, bad: BadRows) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """(line, row, its labels) of the file's lines; bad ones are counted."""
    wanted = WANTED.format(kind)
    for line, row in stream_lines(files.annotations, wanted):
        if isinstance(row, InputError):
            bad.add(row)
            continue
        if not isinstance(row, dict) or not isinstance(row.get("filename"), str) or not isinstance(row.get(kind), dict):
            bad.add(InputError(f"{files.annotations}: line {line}: want {wanted}; found {describe_row(row)}"))
            continue
        yield line, row, row[kind]


def _both(labels: dict[str, Any], name: str) -> Iterator[tuple[bool | str, dict[str, Any]]]:
    """(is an ignore region, row) of a line's boxes; ``ignore`` is an addition of export-labels."""
    yield from ((ignore_flag(row), row) for row in labels.get(name) or ())
    yield from ((True, row) for row in labels.get("ignore") or ())


def fill_detection(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read detection lines; grounding lines are refused."""
    names = read_object(files.companions["classes"], WANTED_CLASSES) if "classes" in files.companions else None
    if names is not None and not all(k.isdigit() and isinstance(v, str) for k, v in names.items()):
        found = next(f"{k!r}: {v!r}" for k, v in names.items() if not (k.isdigit() and isinstance(v, str)))
        raise InputError(f"{files.companions['classes']}: want {WANTED_CLASSES}; found {found}")
    names = None if names is None else {number: class_name(name) for number, name in names.items()}
    known = {_folded(name) for name in (names or {}).values()}
    renamed = dict[tuple[str, str], int]()
    seen, bad = set[str](), BadRows()
    for line, row, labels in _rows(files, "detection", bad):
        try:
            rows: list[Any] = []
            for ignore, item in _both(labels, "instances"):
                label, stated = item.get("label"), class_name(item.get("category"))
                name = stated if names is None else names.get(str(label), "")
                if name and stated and _folded(name) != _folded(stated):
                    if _folded(stated) in known:
                        name = (label, name, stated)
                    else:
                        renamed[name, stated] = renamed.get((name, stated), 0) + 1
                if not name:
                    shown = f"`label` {label!r}; {known_names(names or {})}"
                    if names is None:
                        shown = f"`category` {stated!r}, and no label map (`companions: {{classes: FILE}}`)"
                    rows.append(((shown,), item.get("bbox"), ignore, provenance_of(item) or None))
                    continue
                if not isinstance(name, tuple):
                    seen.add(name)
                rows.append((name, item.get("bbox"), ignore, provenance_of(item) or None))
            key, file = row_key(row), row["filename"]
            data = (file, size_of(row), rows, key, labels.get("verified_absent"), labels.get("not_exhaustive"))
            index.image(line, data, key, file=file if key is None else None)
        except ROW_ERRORS as error:
            bad.add(error, f"line {line}")
            continue
        bad.good += 1
    if renamed:
        (name, stated), n = max(renamed.items(), key=lambda item: item[1])
        log.warning(
            "%s: the label map says %r where `category` says %r (%d times; %d such pairs): the map's names are taken",
            files.annotations, name, stated, n, len(renamed),
        )  # fmt: skip
    if names is not None:
        warn_of_unboxed(files.annotations, dict.fromkeys(name for name in names.values() if name), seen)
    space = sorted(seen) if names is None else [names[k] for k in sorted(names, key=int)]
    return {"label_space": list(dict.fromkeys(name for name in space if name))} | bad.header()


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def fill_grounding(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read grounding lines, each with a caption; detection lines are refused."""
    bad, compared, differ, first = BadRows(), 0, 0, ""
    for line, row, labels in _rows(files, "grounding", bad):
        try:
            caption = labels.get("caption")
            if not isinstance(caption, str) or not caption:
                raise InputError(f"{files.annotations}: line {line}: want a text `caption`; found {caption!r}")
            rows = []
            for ignore, item in _both(labels, "regions"):
                tokens, phrase = item.get("tokens_positive"), item.get("phrase")
                text = phrase if ignore is True or not tokens else None
                if tokens and isinstance(phrase, str) and (spans := spans_of(tokens, len(caption), Counter())):
                    compared += 1
                    if _folded(phrase) != _folded(marked := phrase_of(caption, spans)):
                        differ += 1
                        first = first or f"line {line}: phrase {phrase!r}, span {marked!r}"
                rows.append((tokens, item.get("bbox"), ignore, text, provenance_of(item) or None))
            key = row_key(row)
            index.image(line, (row["filename"], size_of(row), caption, rows, key, labels.get("uncertain")), key)
        except ROW_ERRORS as error:
            bad.add(error, f"line {line}")
            continue
        bad.good += 1
    if differ > 0.05 * compared:
        log.warning(
            "%s: in %d of %d regions `tokens_positive` marks other words than `phrase` has (%s): are they characters "
            "of this caption?",
            files.annotations, differ, compared, first,
        )  # fmt: skip
    return bad.header()


def labelled_detection(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry of a detection line."""
    file, size, rows, key, absent, incomplete = entry.image
    labels = LabelCollector()
    for name, bbox, ignore, origin in rows:
        if isinstance(name, tuple) and len(name) == 1:
            lose(labels.lost, "unknown_category", name[0])
        elif isinstance(name, tuple):
            label, mapped, stated = name
            found = f"label {label!r} is {mapped!r} in the label map, and `category` says {stated!r}"
            lose(labels.lost, "label_contradicts", found)
            labels.add(None, mapped)
            labels.add(None, stated)
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
        searched = not tokens and not ignore and isinstance(text, str)
        places = _places(text, caption) if searched else ()
        for bbox in boxes if several else [boxes]:
            if len(places) == 1:
                spans: tuple[Span, ...] | None = places
            elif searched:
                found = f"the phrase {text!r} without `tokens_positive` occurs {len(places)} times in the caption"
                lose(labels.lost, "no_span", found)
                labels.add(None, text, places)
                continue
            else:
                spans = () if ignore and not tokens else spans_of(tokens, len(caption), labels.lost)
            if spans is not None:
                phrase = text if isinstance(text, str) and ignore else phrase_of(caption, spans)
                labels.add(xyxy_box(bbox, size, labels.lost), phrase, spans, ignore=ignore, **origin or {})
    stated = stated_uncertain(uncertain, len(caption), labels.lost)
    return labels.image(key or image_key(entry.id), ImageLocation(file), size, caption=caption, uncertain=stated)


def _places(phrase: str, caption: str) -> tuple[Span, ...]:
    """Spans where the phrase occurs as whole words: in its own case, else in any case."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    for flags in (0, re.IGNORECASE) if words else ():
        if found := tuple(match.span() for match in re.finditer(rf"(?<!\w){words}(?!\w)", caption, flags)):
            return found
    return ()


DETECTION = Format(
    "detection", WANTED.format("detection"), fill_detection, labelled_detection,
    companions={"classes": "label map JSON; by default the `category` of each instance is its class name"},
)  # fmt: skip
GROUNDING = Format("grounding", WANTED.format("grounding"), fill_grounding, labelled_grounding)
