"""Visual Genome's own JSON (arXiv 1602.07332): objects with names, or regions with descriptions.

Objects are a detection set. Descriptions of an image's regions are put one after the other into captions, as many in each
as a text encoder of 256 tokens has room for; every description's own characters are its box's span.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.data.keys import image_key
from pipeline.data.records import Region, Span
from pipeline.errors import InputError
from pipeline.readers.base import Format, Header, Labelled, Place, SetFiles, size_of, xywh_box
from pipeline.readers.index import Entry, Filling
from pipeline.readers.json_stream import stream_list
from pipeline.readers.sniff import refuse

WANTED_OBJECTS = "Visual Genome's objects.json (a list of images with `objects`)"
WANTED_REGIONS = "Visual Genome's region_descriptions.json (a list of images with `regions`)"
WANTED_IMAGES = "Visual Genome's image_data.json (a list of images with `image_id`, `url`, `width`, `height`)"
CAPTION_CHARACTERS = 700
"""About 170 word pieces: safely below the text encoder's 256."""
COMPANIONS = {"images": "image_data.json: sizes, folders, and which images are COCO's"}
OPTIONS = {"without_coco": "leave out the images that are also COCO's"}


def _images(files: SetFiles, part: str, wanted: str) -> Iterator[tuple[int, str, Any, list[Any]]]:
    """(id, file, size, rows) of every image of the annotations."""
    path = files.companions["images"]
    known: dict[int, tuple[str, Any]] = {}
    for row in stream_list(path, WANTED_IMAGES):
        number = _id(row)
        if number is None or not isinstance(row.get("url"), str) or size_of(row) is None:
            raise refuse(path, WANTED_IMAGES)
        if not (files.options.get("without_coco") and row.get("coco_id")):
            known[number] = (
                "/".join(row["url"].split("/")[-2:]),
                size_of(row),
            )  # as in the two archives: VG_100K_2/1.jpg
        else:
            known[number] = "", None
    for row in stream_list(files.annotations, wanted):
        number = _id(row)
        if number is None or not isinstance(row.get(part), list):
            raise refuse(files.annotations, wanted)
        if number not in known:
            raise InputError(f"{files.annotations}: want images of {path}; found image {number}")
        file, size = known[number]
        if file:
            yield number, file, size, [r if isinstance(r, dict) else {} for r in row[part]]


def _id(row: Any) -> int | None:
    """`image_id`; in older releases of the set `id`."""
    found = row.get("image_id", row.get("id")) if isinstance(row, dict) else None
    return found if isinstance(found, int) else None


def fill_objects(files: SetFiles, index: Filling) -> dict[str, Any]:
    """Raises InputError: not Visual Genome's layout."""
    counts: Counter[str] = Counter()
    for number, file, size, rows in _images(files, "objects", WANTED_OBJECTS):
        kept = [(_name(r.get("names")), [r.get("x"), r.get("y"), r.get("w"), r.get("h")]) for r in rows]
        counts.update(name for name, _ in kept)
        index.image(number, (file, size, kept))
    least = int(files.options.get("least_boxes", 1))
    return {
        "label_space": sorted(name for name, n in counts.items() if name and n >= least),
        "counts": dict(counts),
        "least": least,
    }


def _name(names: Any) -> str:
    first = names[0] if isinstance(names, list) and names else ""
    return " ".join(str(first).lower().split())


def place(number: Any, image: Any) -> Place:
    return Place(image[0])


def labelled_objects(entry: Entry, header: Header) -> Labelled:
    """An object is called by the first of its names, in lower case.

    Regions are lost as ``bad_box``, ``box_without_area``, ``box_outside_image``, ``no_name`` or ``rare_name`` (of fewer
    than ``least_boxes`` boxes in the set).
    """
    file, size, rows = entry.image
    regions: list[Region] = []
    boxless: list[str] = []
    lost: Counter[str] = Counter()
    for name, bbox in rows:
        if not name or header["counts"][name] < header["least"]:
            lost["rare_name" if name else "no_name"] += 1
        elif (box := xywh_box(bbox, size, lost)) is not None:
            regions.append(Region(box=box, phrase=name))
        else:
            boxless.append(name)
    return Labelled(
        image_key(entry.id), Place(file), size, regions=tuple(regions), boxless_names=tuple(boxless), lost=lost
    )


def fill_regions(files: SetFiles, index: Filling) -> dict[str, Any]:
    """Descriptions without words are lost as ``no_phrase``. Raises InputError: not Visual Genome's layout."""
    wordless = 0
    for number, file, size, rows in _images(files, "regions", WANTED_REGIONS):
        described = [(text, row) for row in rows if (text := _text(row))]
        wordless += len(rows) - len(described)
        for n, (caption, parts) in enumerate(_captions(described)):
            index.image(f"{number:09d}-{n:02d}", (file, size, caption, parts))
    return {"lost": {"no_phrase": wordless} if wordless else {}}


def _text(row: dict[str, Any]) -> str:
    return str(row.get("phrase") or "").strip().rstrip(".").rstrip()


def _captions(described: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, list[tuple[Span, Any]]]]:
    """Captions of an image with (span, xywh) of each description in it."""
    caption, parts = "", list[tuple[Span, Any]]()
    for text, row in described:
        if caption and len(caption) + len(text) + 3 > CAPTION_CHARACTERS:
            yield caption + ".", parts
            caption, parts = "", []
        start = len(caption) + 2 if caption else 0
        caption = f"{caption}. {text}" if caption else text
        parts.append(((start, start + len(text)), [row.get("x"), row.get("y"), row.get("width"), row.get("height")]))
    if caption:
        yield caption + ".", parts


def labelled_regions(entry: Entry, header: Header) -> Labelled:
    """Regions are lost as ``bad_box``, ``box_without_area`` or ``box_outside_image``."""
    file, size, caption, parts = entry.image
    regions: list[Region] = []
    lost: Counter[str] = Counter()
    boxless: list[Span] = []
    for (start, end), bbox in parts:
        box = xywh_box(bbox, size, lost)
        if box is None:
            boxless.append((start, end))
        else:
            regions.append(Region(box=box, phrase=caption[start:end], tokens_positive=((start, end),)))
    return Labelled(
        image_key(entry.id), Place(file), size,
        caption=caption, regions=tuple(regions), boxless=tuple(boxless), lost=lost,
    )  # fmt: skip


OBJECTS = Format(
    "detection", WANTED_OBJECTS, fill_objects, labelled_objects, place, COMPANIONS, ("images",),
    {**OPTIONS, "least_boxes": "names of fewer boxes in the set are left out"},
)  # fmt: skip
REGIONS = Format("grounding", WANTED_REGIONS, fill_regions, labelled_regions, place, COMPANIONS, ("images",), OPTIONS)
