"""GLIP's own caption records (GLIP spec section 16): a label TSV of JSON, and an image TSV of base64, or a folder.

Version 1 has a box an entry, each with its spans. Version 2 has a phrase an entry, with a list of boxes and of scores.
Spans are a teacher's word pieces, several for a phrase; those that touch or are parted by one space are put together.
Boxes are as its network gives them, and as its reader gives them back to it: x2 and y2 name the last pixel.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.data.keys import image_key
from pipeline.data.records import Region, Span
from pipeline.errors import InputError
from pipeline.io.files import open_file
from pipeline.readers.base import Format, Header, Labelled, Place, SetFiles, phrase_of, size_of, spans_of, xyxy_box
from pipeline.readers.index import Entry, Filling
from pipeline.readers.sniff import refuse

WANTED = (
    "GLIP's caption records (lines of a key, a tab, and JSON with `caption`, `bboxes`, `scores`, `tokens_positive`)"
)
WANTED_IMAGES = "an image TSV (lines of a key, a tab, and an image in base64)"
FIELDS = ("caption", "bboxes", "scores", "tokens_positive")
ANNOTATOR = "glip"


def fill(files: SetFiles, index: Filling) -> dict[str, Any]:
    """Raises InputError: not the records' layout."""
    path, images = files.annotations, files.companions.get("images")
    suffix = str(files.options.get("image_suffix", ".jpg"))
    for line, (key, _, value) in enumerate(_columns(path, WANTED), 1):
        try:
            record = json.loads(value)
        except (ValueError, RecursionError):
            raise refuse(path, WANTED) from None
        record = record[0] if isinstance(record, list) and len(record) == 1 else record
        if not isinstance(record, dict) or not all(name in record for name in FIELDS):
            found = ", ".join(f"`{k}`" for k in record) if isinstance(record, dict) else str(record)[:40]
            raise InputError(f"{path}: line {line}: want {WANTED}; found {found}")
        size = size_of(record, "img_h", "img_w")
        kept = (record["caption"], record["bboxes"], record["scores"], record["tokens_positive"])
        if images is None:
            index.image(key, (key + suffix, 0, None, size, *kept))
        else:
            index.row(key, ("label", size, *kept))
    if images is not None:
        for key, offset, value in _columns(images, WANTED_IMAGES):
            if not value or len(value.strip()) % 4 or value.lstrip()[:1] in (b"{", b"["):
                raise refuse(images, WANTED_IMAGES)
            index.image(key, (images, offset, len(value.strip()), None, None, None, None, None))
    return {"first_counts": True}


def _columns(path: str, wanted: str) -> Iterator[tuple[str, int, bytes]]:
    """(key, place of the value, value) of every line."""
    try:
        file = open_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    at = 0
    with file:
        for line in file:
            if line.strip():
                key, tab, value = line.partition(b"\t")
                if not tab or b"\t" in value:
                    raise refuse(path, wanted)
                yield key.decode(errors="replace"), at + len(key) + 1, value.rstrip(b"\r\n")
            at += len(line)


def place(number: Any, image: Any) -> Place:
    file, offset, size = image[:3]
    return Place(file, offset=offset, size=size, base64=size is not None, absolute=size is not None)


def labelled(entry: Entry, header: Header) -> Labelled:
    """Regions are lost as ``bad_box``, ``box_without_area``, ``box_outside_image``, ``no_span`` or ``span_outside_caption``."""
    size, caption, bboxes, scores, tokens = entry.image[3:] if not entry.rows else entry.rows[0][1:]
    caption = caption if isinstance(caption, str) else ""
    regions: list[Region] = []
    lost: Counter[str] = Counter()
    boxless: list[Span] = []
    for n, found in enumerate(bboxes or ()):
        several = isinstance(found, list) and all(isinstance(b, list) for b in found)
        of_entity = scores[n] if isinstance(scores, list) and n < len(scores) else None
        boxes = found if several else [found]
        for k, bbox in enumerate(boxes or [None]):  # none: a phrase that the teacher did not find
            spans = spans_of(tokens[n] if n < len(tokens) else None, len(caption), lost)
            if spans is None:
                continue
            box = xyxy_box(bbox, size, lost, beyond=1) if boxes else None
            spans = joined(caption, spans)
            if box is None:
                boxless += spans
                continue
            score = (of_entity[k] if k < len(of_entity) else None) if isinstance(of_entity, list) else of_entity
            regions.append(
                Region(
                    box=box, phrase=phrase_of(caption, spans), tokens_positive=spans,
                    score=None if score is None else float(score), annotator=ANNOTATOR,
                )
            )  # fmt: skip
    where = place(entry.id, entry.image)
    return Labelled(
        image_key(entry.id), where, size, caption=caption, regions=tuple(regions), boxless=tuple(boxless), lost=lost
    )  # fmt: skip


def joined(caption: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Spans in order, those put together that have nothing, or one space, between them."""
    done: list[Span] = []
    for start, end in sorted(set(spans)):
        if done and caption[done[-1][1] : start].strip(" ") == "" and start <= done[-1][1] + 1:
            done[-1] = (done[-1][0], max(end, done[-1][1]))
        else:
            done.append((start, end))
    return tuple(done)


FORMAT = Format(
    "grounding", WANTED, fill, labelled, place,
    companions={"images": "the image TSV; else the images are files called KEY.jpg"},
    options={"image_suffix": "ending of the image files' names, .jpg by default"},
)  # fmt: skip
