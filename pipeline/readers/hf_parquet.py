"""Detection sets as Hugging Face has them: Parquet tables with ``image`` (a file's bytes) and
``objects`` (lists of ``bbox`` and ``category``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.resizing import size_of
from pipeline.errors import InputError
from pipeline.io.files import listing
from pipeline.io.paths import is_url, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.readers.base import Format, Header, ImageLocation, LabelCollector, LabelledImage, SetFiles
from pipeline.readers.boxes import AreaEvidence, xywh_box, xyxy_box
from pipeline.readers.fields import class_name, ignore_flag, option_choice, warn_of_unboxed
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.sniff import wrong_format
from pipeline.readers.xml_files import class_list

WANTED = "Hugging Face's Parquet of a detection set (columns `image`, and `objects` with `bbox` and `category`)"
OBJECTS = ("objects", "annotations", "labels")
BOXES = ("bbox", "bboxes", "boxes", "box")
CATEGORIES = ("category", "categories", "category_id", "label", "labels", "class", "name")


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the tables, without their images."""
    boxes = option_choice(files, "boxes", "xywh", "xyxy")
    corners = boxes == "xyxy"
    names, seen = None, set[Any]()
    evidence = AreaEvidence(corners=corners)
    for path, number, row, stated in _rows(files.annotations):
        if names is None and stated and "classes" in files.companions:
            raise InputError(f"{files.companions['classes']}: found it beside the names in {path}; want one of both")
        if names is None:
            names = stated or (class_list(files.companions["classes"]) if "classes" in files.companions else None)
        with index.bad.row(where := f"{path}: row {number}"):
            things = _things(row, where)
            for thing in things:
                evidence.compare(thing["bbox"], thing.pop("area", None))
                if isinstance(thing["category"], str):
                    thing["category"] = class_name(thing["category"])
                seen.add(thing["category"])
            index.image(f"{stem(path)}-{number:07d}", (path, number, size_of(row), things))
    if shown := evidence.found():
        found = "xywh" if corners else "xyxy"
        raise InputError(
            f"{files.annotations}: boxes: found {found} {shown}; want {boxes}, or options: {{boxes: {found}}}"
        )
    if names is None and seen and not any(isinstance(category, str) for category in seen):
        raise InputError(
            f"{files.annotations}: found numbers for categories, and no names in the table; want `companions: "
            "{classes: FILE}`, class names, one a line"
        )
    if names:
        warn_of_unboxed(files.annotations, names.values(), (names.get(c, c) for c in seen))
    space = list(dict.fromkeys((names or {}).values())) if names else sorted(n for n in seen if isinstance(n, str))
    return {"names": names, "label_space": [name for name in space if name], "corners": corners}


def _rows(pattern: str) -> Iterator[tuple[str, int, dict[str, Any], dict[int, str] | None]]:
    """(table, number of the row in it, row without the image's bytes, names of classes) of all rows."""
    from pipeline.io.tables import open_parquet  # imports pyarrow

    if not is_url(pattern) and Path(pattern).is_dir() and not listing(pattern, ".parquet"):
        raise wrong_format(pattern, WANTED)
    for path in expand_shards(pattern, suffix=".parquet"):
        try:
            file = open_parquet(path)
        except InputError:
            raise wrong_format(path, WANTED) from None
        columns = file.schema_arrow.names
        objects = next((name for name in OBJECTS if name in columns), None)
        if "image" not in columns or objects is None:
            raise InputError(f"{path}: want {WANTED}; found a table with {', '.join(f'`{c}`' for c in columns)}"[:480])
        given = (file.schema_arrow.metadata or {}).get(b"huggingface")
        names = _names(json.loads(given), objects) if given else None
        kept = [c for c in ("width", "height") if c in columns]
        start = 0
        for batch in file.iter_batches(1000, columns=[objects, *kept]):
            for number, row in enumerate(batch.to_pylist(), start):
                row["objects"] = row.pop(objects)
                yield path, number, row, names
            start += batch.num_rows


def _names(metadata: Any, objects: str) -> dict[int, str] | None:
    """Names of the classes in the metadata of the library ``datasets``."""
    features = metadata.get("info", {}).get("features", {}).get(objects)
    waiting = [features]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("_type") == "ClassLabel" and isinstance(value.get("names"), list):
                return {number: class_name(str(name)) for number, name in enumerate(value["names"])}
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return None


def _things(row: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Boxes of a row, whose ``objects`` are a list of them or an object of lists."""
    objects = row["objects"]
    if isinstance(objects, dict):
        lists = {name: values for name, values in objects.items() if isinstance(values, list)}
        if len({len(values) for values in lists.values()}) > 1:
            found = ", ".join(f"{len(values)} of `{name}`" for name, values in lists.items())
            raise InputError(f"{where}: want lists of the same length in `objects`; found {found}")
        objects = [dict(zip(lists, values)) for values in zip(*lists.values())]
    if objects is None:
        raise InputError(f"{where}: want a list of objects; found none (null)")
    things = []
    for item in objects:
        box, category = (next((name for name in known if name in item), None) for known in (BOXES, CATEGORIES))
        if box is None or category is None:
            raise InputError(f"{where}: want objects with `bbox` and `category`; found {', '.join(item)}")
        ignore = ignore_flag(item)
        bbox = item[box]
        thing = {"bbox": None if bbox is None else list(bbox), "category": item[category], "ignore": ignore}
        things.append(thing | ({"area": item["area"]} if "area" in item else {}))
    return things


def location(image_id: Any, image: Any) -> ImageLocation:
    return ImageLocation(image[0], offset=image[1], column="image", absolute=True)


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry."""
    size, things = entry.image[2:]
    names, labels = header["names"], LabelCollector()
    for thing in things:
        category = thing["category"]
        known = category if names is None or category in names.values() else ""
        name = known if isinstance(category, str) else (names or {}).get(category)
        if not name:
            labels.unknown(f"`category` {category!r}", names or {})
            continue
        read = xyxy_box if header["corners"] else xywh_box
        labels.add(read(thing["bbox"], size, labels.lost), name, ignore=thing["ignore"])
    return labels.image(entry, size, location=location)


FORMAT = Format(
    "detection", WANTED, fill, labelled, location,
    companions={"classes": "class names, one a line, if the tables do not have them"},
    options={"boxes": "xywh (the default) or xyxy: what the four numbers of a box are"},
)  # fmt: skip
