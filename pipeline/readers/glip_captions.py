"""GLIP's caption records (GLIP spec section 16): a label TSV with JSON, and an image TSV with
base64 or a folder.

In version 1 an entry is a box with its spans; in version 2 it is a phrase with lists of boxes and
scores. Spans are word pieces, several for a phrase; spans that touch, or have one space between
them, are joined. x2 and y2 of boxes are inclusive, as in GLIP's code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline.data.records import Span
from pipeline.data.resizing import size_of
from pipeline.errors import InputError
from pipeline.io.files import open_file
from pipeline.readers.base import Format, Header, ImageLocation, LabelCollector, LabelledImage, SetFiles
from pipeline.readers.boxes import xyxy_box
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.sniff import bad_row, describe_row, wrong_format
from pipeline.readers.spans import phrase_of, spans_of

WANTED = (
    "GLIP's caption records (lines of a key, a tab, and JSON with `caption`, `bboxes`, `scores`, `tokens_positive`)"
)
WANTED_IMAGES = "an image TSV (lines of a key, a tab, and an image in base64)"
FIELDS = ("caption", "bboxes", "scores", "tokens_positive")
ANNOTATOR = "glip"


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the label TSV, and the image TSV if given."""
    path, images = files.annotations, files.companions.get("images")
    suffix = str(files.options.get("image_suffix", ".jpg"))
    for line, (key, _, value) in enumerate(_columns(path, WANTED, index), 1):
        try:
            record = json.loads(value)
        except (ValueError, RecursionError):
            index.bad.add(bad_row(path, WANTED, f"{key}: ", "no JSON in it", first=line == 1))
            continue
        record = record[0] if isinstance(record, list) and len(record) == 1 else record
        if not isinstance(record, dict) or not all(name in record for name in FIELDS):
            index.bad.add(InputError(f"{path}: line {line}: want {WANTED}; found {describe_row(record)}"))
            continue
        index.bad.good += 1
        size = size_of(record, "img_h", "img_w")
        kept = (record["caption"], record["bboxes"], record["scores"], record["tokens_positive"])
        if images is None:
            index.image(key, (key + suffix, 0, None, size, *kept))
        else:
            index.row(key, ("label", size, *kept))
    if images is not None:
        for key, offset, value in _columns(images, WANTED_IMAGES, None):
            if not value or len(value.strip()) % 4 or value.lstrip()[:1] in (b"{", b"["):
                raise wrong_format(images, WANTED_IMAGES)
            index.image(key, (images, offset, len(value.strip()), None, None, None, None, None))
    return {"first_counts": True}


def _columns(path: str, wanted: str, index: IndexWriter | None) -> Iterator[tuple[str, int, bytes]]:
    """(key, byte offset of the value, value) of every line. Lines of other columns are counted by
    ``index``; without it they are an error.
    """
    offset = 0
    with open_file(path) as file:
        for line in file:
            if line.strip():
                key, tab, value = line.partition(b"\t")
                if tab and b"\t" not in value:
                    yield key.decode(errors="replace"), offset + len(key) + 1, value.rstrip(b"\r\n")
                elif index is None:
                    raise wrong_format(path, wanted)
                else:
                    begins = key[:30].decode(errors="replace")
                    index.bad.add(bad_row(path, wanted, "", f"a line that begins {begins!r}", first=not offset))
            offset += len(line)


def location(image_id: Any, image: Any) -> ImageLocation:
    file, offset, size = image[:3]
    return ImageLocation(file, offset=offset, size=size, base64=size is not None, absolute=size is not None)


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry."""
    size, caption, bboxes, scores, tokens = entry.image[3:] if not entry.rows else entry.rows[0][1:]
    caption = caption if isinstance(caption, str) else ""
    labels = LabelCollector()
    for n, bbox_or_list in enumerate(bboxes or ()):
        several = isinstance(bbox_or_list, list) and all(isinstance(b, list) for b in bbox_or_list)
        score_or_list = scores[n] if isinstance(scores, list) and n < len(scores) else None
        boxes = bbox_or_list if several else [bbox_or_list]
        for k, bbox in enumerate(boxes or [None]):  # None: a phrase for which the teacher has no box
            spans = spans_of(tokens[n] if n < len(tokens) else None, len(caption), labels.lost)
            if spans is None:
                continue
            box = xyxy_box(bbox, size, labels.lost, beyond=1) if boxes else None
            spans = join_adjacent(caption, spans)
            score = score_or_list
            if isinstance(score_or_list, list):
                score = score_or_list[k] if k < len(score_or_list) else None
            score = None if score is None or box is None else float(score)
            labels.add(box, phrase_of(caption, spans), spans, score=score, annotator=ANNOTATOR)
    return labels.image(entry, size, location=location, caption=caption)


def join_adjacent(caption: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Sort spans, and join those with nothing or one space between them."""
    joined: list[Span] = []
    for start, end in sorted(set(spans)):
        if joined and caption[joined[-1][1] : start].strip(" ") == "" and start <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


FORMAT = Format(
    "grounding", WANTED, fill, labelled, location,
    companions={"images": "the image TSV; by default the images are files named KEY.jpg"},
    options={"image_suffix": "suffix of the image files' names, .jpg by default"},
)  # fmt: skip
