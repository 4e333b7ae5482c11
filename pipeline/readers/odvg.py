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

from pipeline.data.keys import row_key
from pipeline.data.records import Span
from pipeline.data.resizing import size_of
from pipeline.errors import InputError
from pipeline.readers.base import Format, Header, LabelCollector, LabelledImage, SetFiles, known_names
from pipeline.readers.boxes import xyxy_box
from pipeline.readers.fields import class_name, folded, ignore_flag, provenance_of, warn_of_unboxed
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.json_stream import read_object, stream_lines
from pipeline.readers.sniff import describe_row
from pipeline.readers.spans import phrase_of, spans_of, stated_uncertain

log = logging.getLogger("glip_self_train")
WANTED = "ODVG JSON Lines (objects with `filename` and `{}`)"
WANTED_CLASSES = 'a label map (a JSON object such as {"0": "person"})'


def _rows(files: SetFiles, kind: str, index: IndexWriter) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """(line, row, its labels) of the file's lines; bad ones are counted."""
    wanted = WANTED.format(kind)
    for line, row in stream_lines(files.annotations, wanted):
        if isinstance(row, InputError):
            index.bad.add(row)
            continue
        if not isinstance(row, dict) or not isinstance(row.get("filename"), str) or not isinstance(row.get(kind), dict):
            index.bad.add(InputError(f"{files.annotations}: line {line}: want {wanted}; found {describe_row(row)}"))
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
        found = next(f"{k!r}: {v!r:.80}" for k, v in names.items() if not (k.isdigit() and isinstance(v, str)))
        raise InputError(f"{files.companions['classes']}: want {WANTED_CLASSES}; found {found}")
    names = None if names is None else {number: class_name(name) for number, name in names.items()}
    known = {folded(name) for name in (names or {}).values()}
    renamed = dict[tuple[str, str], int]()
    seen = set[str]()
    for line, row, labels in _rows(files, "detection", index):
        with index.bad.row(f"line {line}"):
            rows: list[Any] = []
            for ignore, item in _both(labels, "instances"):
                label, stated = item.get("label"), class_name(item.get("category"))
                name = stated if names is None else names.get(str(label), "")
                if name and stated and folded(name) != folded(stated):
                    if folded(stated) in known:
                        name = (label, name, stated)
                    else:
                        renamed[name, stated] = renamed.get((name, stated), 0) + 1
                if not name and names is None:
                    name = (f"`category` {stated!r}, and no label map (`companions: {{classes: FILE}}`)",)
                elif not name:
                    name = (f"`label` {label!r}; {known_names(names or {})}",)
                elif isinstance(name, str):
                    seen.add(name)
                rows.append((name, item.get("bbox"), ignore, provenance_of(item) or None))
            key, file = row_key(row), row["filename"]
            data = (file, size_of(row), rows, key, labels.get("verified_absent"), labels.get("not_exhaustive"))
            index.image(line, data, key, file=file if key is None else None)
    if renamed:
        (name, stated), n = max(renamed.items(), key=lambda item: item[1])
        log.warning(
            "%s: the label map says %r where `category` says %r (%d times; %d such pairs): the map's names are taken",
            files.annotations, name, stated, n, len(renamed),
        )  # fmt: skip
    if names is not None:
        warn_of_unboxed(files.annotations, dict.fromkeys(name for name in names.values() if name), seen)
    space = sorted(seen) if names is None else [names[k] for k in sorted(names, key=int)]
    return {"label_space": list(dict.fromkeys(name for name in space if name))}


def fill_grounding(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read grounding lines, each with a caption; detection lines are refused."""
    compared, differ, first = 0, 0, ""
    for line, row, labels in _rows(files, "grounding", index):
        with index.bad.row(f"line {line}"):
            caption = labels.get("caption")
            if not isinstance(caption, str) or not caption:
                raise InputError(f"{files.annotations}: line {line}: want a text `caption`; found {caption!r}")
            rows = []
            for ignore, item in _both(labels, "regions"):
                tokens, phrase = item.get("tokens_positive"), item.get("phrase")
                text = phrase if ignore is True or not tokens else None
                if tokens and isinstance(phrase, str) and (spans := spans_of(tokens, len(caption), Counter())):
                    compared += 1
                    if folded(phrase) != folded(marked := phrase_of(caption, spans)):
                        differ += 1
                        first = first or f"line {line}: phrase {phrase!r}, span {marked!r}"
                rows.append((tokens, item.get("bbox"), ignore, text, provenance_of(item) or None))
            key = row_key(row)
            index.image(line, (row["filename"], size_of(row), caption, rows, key, labels.get("uncertain")), key)
    if differ > 0.05 * compared:
        log.warning(
            "%s: in %d of %d regions `tokens_positive` marks other words than `phrase` has (%s): are they characters "
            "of this caption?",
            files.annotations, differ, compared, first,
        )  # fmt: skip
    return {}


def labelled_detection(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry of a detection line."""
    _, size, rows, key, absent, incomplete = entry.image
    labels = LabelCollector()
    for name, bbox, ignore, origin in rows:
        if isinstance(name, tuple) and len(name) == 1:
            labels.lose("unknown_category", name[0])
        elif isinstance(name, tuple):
            label, mapped, stated = name
            found = f"label {label!r} is {mapped!r} in the label map, and `category` says {stated!r}"
            labels.lose("label_contradicts", found)
            labels.add(None, mapped)
            labels.add(None, stated)
        else:
            labels.add(xyxy_box(bbox, size, labels.lost), name, ignore=ignore, **origin or {})
    return labels.image(entry, size, key=key, verified_absent=_names(absent), not_exhaustive=_names(incomplete))


def _names(value: Any) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) else None


def labelled_grounding(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry of a grounding line. A phrase's ``bbox`` is one box or a list of boxes."""
    _, size, caption, rows, key, uncertain = entry.image
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
                labels.lose("no_span", found)
                labels.add(None, text, places)
                continue
            else:
                spans = () if ignore and not tokens else spans_of(tokens, len(caption), labels.lost)
            if spans is not None:
                phrase = text if isinstance(text, str) and ignore else phrase_of(caption, spans)
                labels.add(xyxy_box(bbox, size, labels.lost), phrase, spans, ignore=ignore, **origin or {})
    stated = stated_uncertain(uncertain, len(caption), labels.lost)
    return labels.image(entry, size, key=key, caption=caption, uncertain=stated)


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
