"""Visual Genome's JSON (arXiv 1602.07332): objects with names, or regions with descriptions.

Objects form a detection set. The descriptions of an image's regions are concatenated to captions
that fit a text encoder of 256 tokens; a description is the span of its box.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.data.records import Span
from pipeline.data.resizing import size_of
from pipeline.errors import InputError
from pipeline.readers.base import Format, Header, LabelCollector, LabelledImage, SetFiles
from pipeline.readers.boxes import xywh_box
from pipeline.readers.fields import option_flag
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.json_stream import stream_list
from pipeline.readers.sniff import describe_row, wrong_format

WANTED_OBJECTS = "Visual Genome's objects.json (a list of images with `objects`)"
WANTED_REGIONS = "Visual Genome's region_descriptions.json (a list of images with `regions`)"
WANTED_IMAGES = "Visual Genome's image_data.json (a list of images with `image_id`, `url`, `width`, `height`)"
CAPTION_CHARACTERS = 700
"""Maximum caption length, about 170 word pieces: well below the text encoder's 256."""
COMPANIONS = {"images": "image_data.json: sizes, folders, and COCO ids"}
OPTIONS = {"without_coco": "exclude images that are also in COCO"}


def _images(files: SetFiles, field: str, wanted: str, index: IndexWriter) -> Iterator[tuple[int, str, Any, list[Any]]]:
    """(id, file, size, rows) of every image in the annotations."""
    path = files.companions["images"]
    known: dict[int, tuple[str, Any]] = {}
    without_coco = option_flag(files, "without_coco")
    for row in stream_list(path, WANTED_IMAGES):
        number = _id(row)
        if number is None or not isinstance(row.get("url"), str) or size_of(row) is None:
            if not known:
                raise wrong_format(path, WANTED_IMAGES)
            continue  # and counted where an annotation is of it
        # the path in the two archives, such as VG_100K_2/1.jpg
        file = "" if without_coco and row.get("coco_id") else "/".join(row["url"].split("/")[-2:])
        known[number] = file, size_of(row)
    for n, row in enumerate(stream_list(files.annotations, wanted)):
        number = _id(row)
        if number is None or not isinstance(row.get(field), list):
            index.bad.add(wrong_format(files.annotations, wanted) if not n else InputError(
                f"{files.annotations}: row {n}: want an image with `image_id` and `{field}`; found {describe_row(row)}"
            ))  # fmt: skip
            continue
        if number not in known:
            index.bad.add(InputError(f"{files.annotations}: want images of {path}; found image {number}"))
            continue
        index.bad.good += 1
        file, size = known[number]
        if file:
            yield number, file, size, [r if isinstance(r, dict) else {} for r in row[field]]


def _id(row: Any) -> int | None:
    """``image_id`` of a row; ``id`` in older releases."""
    number = row.get("image_id", row.get("id")) if isinstance(row, dict) else None
    return number if isinstance(number, int) else None


def fill_objects(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read objects.json."""
    counts: Counter[str] = Counter()
    for number, file, size, rows in _images(files, "objects", WANTED_OBJECTS, index):
        kept = [(_name(r.get("names")), [r.get("x"), r.get("y"), r.get("w"), r.get("h")]) for r in rows]
        counts.update(name for name, _ in kept)
        index.image(number, (file, size, kept))
    least = int(files.options.get("least_boxes", 1))
    return index.bad.header() | {
        "label_space": sorted(name for name, n in counts.items() if name and n >= least),
        "counts": dict(counts),
        "least": least,
    }


def _name(names: Any) -> str:
    first = names[0] if isinstance(names, list) and names else ""
    return " ".join(str(first).lower().split())


def labelled_objects(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry. An object's class is the first of its names, in lower case.

    Regions are also dropped for ``no_name`` and ``rare_name``: fewer than ``least_boxes`` boxes in
    the set.
    """
    _, size, rows = entry.image
    labels = LabelCollector()
    for name, bbox in rows:
        if not name or header["counts"][name] < header["least"]:
            labels.lost["rare_name" if name else "no_name"] += 1
        else:
            labels.add(xywh_box(bbox, size, labels.lost), name)
    return labels.image(entry, size)


def fill_regions(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read region_descriptions.json. Empty descriptions are counted as ``no_phrase``."""
    without_text = 0
    for number, file, size, rows in _images(files, "regions", WANTED_REGIONS, index):
        described = [(text, row) for row in rows if (text := _text(row))]
        without_text += len(rows) - len(described)
        for n, (caption, spans) in enumerate(_captions(described)):
            index.image(f"{number:09d}-{n:02d}", (file, size, caption, spans))
    return index.bad.header() | {"lost": {"no_phrase": without_text} if without_text else {}}


def _text(row: dict[str, Any]) -> str:
    return str(row.get("phrase") or "").strip().rstrip(".").rstrip()


def _captions(described: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, list[tuple[Span, Any]]]]:
    """Captions of an image, each with (span, xywh) of its descriptions."""
    caption, spans = "", list[tuple[Span, Any]]()
    for text, row in described:
        if caption and len(caption) + len(text) + 3 > CAPTION_CHARACTERS:
            yield caption + ".", spans
            caption, spans = "", []
        start = len(caption) + 2 if caption else 0
        caption = f"{caption}. {text}" if caption else text
        spans.append(((start, start + len(text)), [row.get("x"), row.get("y"), row.get("width"), row.get("height")]))
    if caption:
        yield caption + ".", spans


def labelled_regions(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry."""
    _, size, caption, descriptions = entry.image
    labels = LabelCollector()
    for (start, end), bbox in descriptions:
        labels.add(xywh_box(bbox, size, labels.lost), caption[start:end], ((start, end),))
    return labels.image(entry, size, caption=caption)


OBJECTS = Format(
    "detection", WANTED_OBJECTS, fill_objects, labelled_objects, companions=COMPANIONS, needed=("images",),
    options={**OPTIONS, "least_boxes": "exclude names with fewer boxes in the set"},
)  # fmt: skip
REGIONS = Format(
    "grounding", WANTED_REGIONS, fill_regions, labelled_regions, companions=COMPANIONS, needed=("images",),
    options=OPTIONS,
)  # fmt: skip
