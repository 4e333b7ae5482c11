"""Images that people have gone through in a labelling tool, as Label Studio, CVAT and COCO files state them.

Which regions were exported is in Label Studio's and CVAT's files, as the writers of :mod:`pipeline.writers` put it
there; COCO's do not say.
"""

from __future__ import annotations

import math
import os
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.data.records import Box, Span
from pipeline.data.resizing import original_size, size_of
from pipeline.errors import InputError
from pipeline.readers.boxes import is_four_numbers, is_number, turned
from pipeline.readers.coco import upright_box
from pipeline.readers.json_stream import stream_list, stream_object
from pipeline.readers.spans import spans_of
from pipeline.readers.xml_files import read_xml

LABEL_STUDIO = "Label Studio's export named JSON (a list of tasks with `data` and `annotations`)"
CVAT = "CVAT for images 1.1 (annotations.xml)"
COCO = "COCO's JSON (an object with the lists `images`, `annotations`, `categories`)"


@dataclass(frozen=True)
class ReviewedBox:
    """A box of a person. label: text of its phrase. box: xyxy in pixels; None: a shape that is no box.

    region: id of the exported region that it was made of, if it is known; span: of the phrase, if it is known.
    """

    label: str
    box: Box | None
    region: str = ""
    span: Span | None = None


@dataclass
class ReviewedImage:
    """An image of the file.

    Attributes:
        file: its path or address. shard, key: "" if the file does not say.
        size: (height, width), if the file says.
        exported: ids of the regions that were exported, None if the file does not say.
        caption, spans: text of a phrase -> its span in the caption, if the file says.
        unseen: reason why no person has gone through it; "" if one has.
        by: who has; "" if the file does not say. at: when.
    """

    file: str
    at: datetime
    shard: str = ""
    key: str = ""
    size: tuple[int, int] | None = None
    boxes: list[ReviewedBox] = field(default_factory=list)
    exported: tuple[str, ...] | None = None
    caption: str = ""
    spans: Mapping[str, Span] = field(default_factory=dict)
    unseen: str = ""
    by: str = ""


def label_studio(path: str, every: bool) -> Iterator[ReviewedImage]:
    """Tasks; seen are those with an annotation that was submitted. Of several the ground truth counts, or the latest.

    Raises:
        InputError: another format.
    """
    if every:
        raise InputError("--all-images is of cvat and coco; Label Studio's tasks say which were submitted")
    for task in stream_list(path, LABEL_STUDIO):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict) or "annotations" not in task:
            raise InputError(f"{path}: want {LABEL_STUDIO}; found {str(task)[:60]!r}")
        data = task["data"]
        done = [a for a in _list(task["annotations"]) if isinstance(a, dict) and not a.get("was_cancelled")]
        if not done:
            unseen = "skipped" if task["annotations"] else "not_annotated"
            yield ReviewedImage(str(data.get("image", "")), datetime.now(UTC), unseen=unseen)
            continue
        last = max(done, key=lambda a: (bool(a.get("ground_truth")), str(a.get("updated_at") or a.get("created_at"))))
        author = last.get("completed_by")
        author = (author.get("email") or author.get("id")) if isinstance(author, dict) else author
        rows = [row for row in _list(last.get("result")) if isinstance(row, dict)]
        size = size_of(data) or next((s for row in rows if (s := original_size(row)) is not None), None)
        exported = data.get("regions")
        yield ReviewedImage(
            str(data.get("image", "")), _time(last.get("updated_at") or last.get("created_at"), path),
            str(data.get("shard") or ""), str(data.get("key") or ""), size, list(_rectangles(rows, size)),
            tuple(map(str, exported)) if isinstance(exported, list) else None,
            str(data.get("caption") or ""), _spans(data.get("spans")),
            by=f"label-studio:{author}" if author is not None else "label-studio",
        )  # fmt: skip


def _spans(value: Any) -> dict[str, Span]:
    """Text of each phrase -> its span, as export-labels writes them; what is none is left out."""
    pairs = value.items() if isinstance(value, dict) else ()
    return {text: spans[0] for text, pair in pairs if (spans := spans_of([pair], sys.maxsize, Counter()))}


def _rectangles(rows: Sequence[Mapping[str, Any]], size: tuple[int, int] | None) -> Iterator[ReviewedBox]:
    """Boxes of an annotation's results; those of one id state a shape and its labels together or apart."""
    shapes: dict[str, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
        if isinstance(row.get("value"), dict) and row.get("type") not in ("relation", "choices", "textarea", "rating"):
            shapes.setdefault(str(row.get("id") or f"#{number}"), []).append(row["value"])
    for region, values in shapes.items():
        joined = {name: value for part in values for name, value in part.items()}
        labels = [text for name in ("rectanglelabels", "labels") for text in _list(joined.get(name))]
        names = ("x", "y", "width", "height")
        box = None
        if size is not None and all(is_number(joined.get(name)) for name in names):
            x, y, w, h = (joined[n] / 100 * side for n, side in zip(names, (size[1], size[0]) * 2, strict=True))
            box = _about_corner(x, y, w, h, joined.get("rotation"))
        for label in labels or [""]:
            yield ReviewedBox(str(label), box, region.partition("#")[0])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _about_corner(x: float, y: float, w: float, h: float, degrees: Any) -> Box:
    """The box around one that is turned about its left upper corner, as Label Studio turns it."""
    if not degrees or not is_number(degrees):
        return x, y, x + w, y + h
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    xs, ys = zip(*[(x + u * cos - v * sin, y + u * sin + v * cos) for u in (0, w) for v in (0, h)], strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def cvat(path: str, every: bool) -> Iterator[ReviewedImage]:
    """Images; seen are those whose tag has the tick ``reviewed``, or with ``every`` all of them.

    Raises:
        InputError: another format, or tracks of a video.
    """
    root = read_xml(path, CVAT, "annotations")
    if root.find("track") is not None:
        raise InputError(f"{path}: want {CVAT}; found tracks, as in CVAT for video 1.1")
    at = _time(next((e.text for e in root.iterfind("meta/*/updated")), None) or root.findtext("meta/dumped"), path)
    for row in root.iterfind("image"):
        tag = next((_texts(tag) for tag in row.iterfind("tag") if tag.get("label") == "_image"), {})
        image = ReviewedImage(row.get("name", ""), at, tag.get("shard", ""), tag.get("key", ""), by="cvat")
        image.size = size_of(row.attrib)
        if "regions" in tag:
            count, *ids = tag["regions"].split() or [""]
            image.exported = tuple(ids)
            if count != str(len(ids)) or any(len(i) != 10 for i in ids):
                image.unseen = "regions_cut"  # a CVAT that stores shorter values
        if not every and tag.get("reviewed", "").lower() != "true":
            image.unseen = image.unseen or "not_reviewed"
        for shape in row:
            if shape.tag != "tag":
                texts, label = _texts(shape), shape.get("label", "")
                label = texts.get("phrase", "").strip() if "phrase" in texts else label
                image.boxes.append(ReviewedBox(label, _corners(shape), texts.get("region", "").strip()))
        yield image


def _texts(element: ET.Element) -> dict[str, str]:
    """A shape's or tag's attributes."""
    return {a.get("name", ""): a.text or "" for a in element.iterfind("attribute")}


def _corners(shape: ET.Element) -> Box | None:
    """The box around a rectangle, which CVAT turns about its centre; None of other shapes."""
    try:
        x1, y1, x2, y2 = sides = [float(shape.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr")]
        degrees = float(shape.get("rotation", 0))
    except (KeyError, ValueError):
        return None
    if not is_four_numbers(sides) or not is_number(degrees):
        return None
    if degrees == 0:
        return x1, y1, x2, y2
    x, y, w, h = turned([x1, y1, x2 - x1, y2 - y1], degrees)
    return x, y, x + w, y + h


def coco(path: str, every: bool) -> Iterator[ReviewedImage]:
    """Images; seen are those with an annotation, or with ``every`` all of them.

    Raises:
        InputError: another format.
    """
    at = datetime.fromtimestamp(os.stat(path).st_mtime, UTC)
    images, names = dict[Any, ReviewedImage](), dict[Any, str]()
    rows = list[dict[str, Any]]()
    for section, row in stream_object(path, ("images", "annotations", "categories"), COCO):
        if not isinstance(row, dict):
            raise InputError(f"{path}: want {COCO}; found {str(row)[:40]!r} among its {section}")
        if section == "images":
            image = ReviewedImage(str(row.get("file_name", "")), at, size=size_of(row), by="coco")
            image.unseen = "" if every else "not_annotated"
            images[row.get("id")] = image
        elif section == "categories":
            names[row.get("id")] = str(row.get("name", ""))
        else:
            rows.append(row)
    for row in rows:
        if (image_of := images.get(row.get("image_id"))) is None:
            raise InputError(f"{path}: found an annotation of image {row.get('image_id')!r}, which is not listed")
        image_of.unseen = ""
        bbox, spans = upright_box(row, row.get("bbox")), row.get("tokens_positive")
        box = (bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]) if is_four_numbers(bbox) else None
        span = spans_of(spans, sys.maxsize, Counter()) if spans else None
        image_of.boxes.append(ReviewedBox(names.get(row.get("category_id"), ""), box, span=span[0] if span else None))
    yield from images.values()


READERS: dict[str, Callable[[str, bool], Iterator[ReviewedImage]]] = {
    "label-studio": label_studio,
    "cvat": cvat,
    "coco": coco,
}
"""Readers by the name of the format; the second argument: every image counts as seen."""


def _time(text: Any, path: str) -> datetime:
    """A time that the file states, else that of the file."""
    try:
        value = datetime.fromisoformat(str(text).strip())
    except ValueError:
        return datetime.fromtimestamp(os.stat(path).st_mtime, UTC)
    return value if value.tzinfo else value.replace(tzinfo=UTC)
