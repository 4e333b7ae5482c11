"""OpenImages' CSV files: relative boxes, class hierarchy, group-of boxes, verified negatives.

The set is federated: the presence of a class in an image is known only if it was verified
(Kuznetsova et al., arXiv 1811.00982, section 3).
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from typing import Any

from pipeline.errors import InputError
from pipeline.io.files import open_file
from pipeline.readers.absence import unclear_names
from pipeline.readers.base import Format, Header, ImageLocation, LabelCollector, LabelledImage, SetFiles
from pipeline.readers.boxes import clipped
from pipeline.readers.fields import class_name, flag_of, number_of
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.json_stream import read_object
from pipeline.readers.sniff import wrong_format

log = logging.getLogger("glip_self_train")
BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")
WANTED = f"OpenImages' box CSV (with the columns {', '.join(BOX_COLUMNS)})"
WANTED_LABELS = f"OpenImages' image-level label CSV (with the columns {', '.join(LABEL_COLUMNS)})"
WANTED_CLASSES = "OpenImages' class descriptions (CSV lines such as /m/011k07,Tortoise)"
WANTED_HIERARCHY = "OpenImages' hierarchy JSON (an object with `LabelName` and `Subcategory`)"


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the files."""
    classes = ((label, class_name(name)) for label, name in _classes(files.companions["classes"]))
    names = {label: name for label, name in classes if name}
    for image, label, x1, x2, y1, y2, group in _columns(files.annotations, BOX_COLUMNS, WANTED, index):
        is_group = False if group.strip() == "-1" else flag_of({"IsGroupOf": group}, "IsGroupOf")  # -1: not known
        index.row(image, (label, x1, y1, x2, y2, is_group))
    index.images_of_rows()
    if "labels" in files.companions:
        labels = _columns(files.companions["labels"], LABEL_COLUMNS, WANTED_LABELS, index, never="XMin")
        for image, label, confidence in labels:
            index.row(image, (label, number_of(confidence) != 0))
        index.forget_orphan_annotations()  # labels of images outside this set
    else:
        log.warning(
            "%s: no image-level `labels` given: each class without a box in an image is taken as absent from it",
            files.name,
        )
    below = _below(files.companions["hierarchy"]) if "hierarchy" in files.companions else {}
    header = {
        "names": names,
        "label_space": list(dict.fromkeys(names.values())),
        "federated": "labels" in files.companions,
        "below": below,
    }
    if not header["federated"] and below:  # else only what was verified is absent
        header["above"] = {label: [upper for upper in below if label in below[upper]] for label in names}
    return header


def location(image_id: Any, image: Any) -> ImageLocation:
    return ImageLocation(f"{image_id}.jpg")


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry. Group-of boxes become ignore regions, as they contain several objects.

    With image-level labels, the subclasses of a class verified absent are absent too. Classes that
    have a box or are verified present, and their superclasses, are never absent.
    """
    names, below = header["names"], header["below"]
    labels = LabelCollector()
    present: set[str] = set()
    absent: set[str] = set()
    for row in entry.rows:
        if len(row) == 2:
            (present if row[1] else absent).add(row[0])
            continue
        label, *corners, group = row
        present.add(label)
        name = names.get(label)
        if name is None:
            labels.unknown(f"`LabelName` {label!r}", names)
            continue
        try:
            x1, y1, x2, y2 = map(float, corners)
            box = clipped((x1, y1, x2, y2), (1, 1), labels.lost)
        except ValueError:
            labels.lose("bad_box", f"{corners}; want four numbers")
            box = None
        labels.add(box, name, ignore=group)
    verified = None
    if header["federated"]:
        absent |= {lower for label in absent for lower in below.get(label, ())}
        above = {upper for upper, lower in below.items() if present & set(lower)}
        present_names = {names.get(label) for label in present | above}
        verified = tuple(sorted({names[n] for n in absent if n in names} - present_names))
    unclear = unclear_names(present, header["above"]) if header.get("above") else ()
    incomplete = tuple(sorted({names[n] for n in unclear if n in names})) or None
    return labels.image(entry, location=location, relative=True, verified_absent=verified, not_exhaustive=incomplete)


def _columns(
    path: str, wanted: tuple[str, ...], description: str, index: IndexWriter, *, never: str = ""
) -> Iterator[tuple[str, ...]]:
    """The wanted columns of every row. ``never``: a column that only the set's other files have."""
    lines = _lines(path, description)
    _, head = next(lines, (0, []))
    if not set(wanted) <= set(head) or (never and never in head):
        raise wrong_format(path, description)
    positions = [head.index(name) for name in wanted]
    for line, row in lines:
        if not row:
            continue
        if len(row) < len(head):
            error = InputError(f"{path}: line {line}: want {len(head)} columns; found {len(row)}")
            index.bad.add(error, unit="regions")
            continue
        index.bad.good += 1
        yield tuple(row[position] for position in positions)


def _classes(path: str) -> Iterator[tuple[str, str]]:
    for _, row in _lines(path, WANTED_CLASSES):
        if row == ["LabelName", "DisplayName"]:
            continue
        if len(row) != 2 or not row[0].startswith("/"):
            raise wrong_format(path, WANTED_CLASSES)
        yield row[0], row[1]


def _lines(path: str, description: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, columns) of a CSV file's rows."""
    with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        try:
            for row in rows:
                yield rows.line_num, row
        except (csv.Error, UnicodeDecodeError):
            raise wrong_format(path, description) from None


def _below(path: str) -> dict[str, list[str]]:
    """Class -> all its direct and indirect subclasses."""
    tree = read_object(path, WANTED_HIERARCHY)
    if "LabelName" not in tree or not isinstance(tree.get("Subcategory"), list):
        raise wrong_format(path, WANTED_HIERARCHY)
    below: dict[str, set[str]] = {}

    def walk(node: dict[str, Any]) -> set[str]:
        lower: set[str] = set()
        for child in node.get("Subcategory", ()):
            lower |= {child["LabelName"]} | walk(child)
        below.setdefault(node["LabelName"], set()).update(lower)  # a class may have several parents
        return lower

    walk(tree)
    return {label: sorted(lower) for label, lower in below.items() if lower}


FORMAT = Format(
    "detection", WANTED, fill, labelled, location,
    companions={
        "classes": "class-descriptions-boxable.csv: names of the labels",
        "labels": "human-verified image-level labels CSV: classes verified absent",
        "hierarchy": "bbox_labels_600_hierarchy.json: subclasses of absent classes are absent",
    },
    needed=("classes",),
)  # fmt: skip
