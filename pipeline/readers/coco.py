"""COCO's detection JSON (COCO, Objects365, ODinW, LVIS): boxes with class names.

LVIS (arXiv 1908.03195) is federated: ``neg_category_ids`` of an image are verified absent,
``not_exhaustive_category_ids`` are present with more instances than boxes, and the presence of most
other classes is unknown. ``key`` of an image, and ``score``, ``annotator`` and ``root`` of an
annotation, are additions of export-labels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlparse

from pipeline.data.keys import row_key
from pipeline.data.resizing import size_of
from pipeline.errors import InputError
from pipeline.readers.absence import unclear_names
from pipeline.readers.base import Format, Header, LabelCollector, LabelledImage, SetFiles, known_names
from pipeline.readers.boxes import AreaEvidence, is_four_numbers, is_number, turned, xywh_box
from pipeline.readers.fields import class_name, ignore_flag, provenance_of, want, warn_of_unboxed
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.json_stream import stream_object

log = logging.getLogger("glip_self_train")
MAX_COMPARED, MAX_OUTLINES = 100_000, 1000
"""Annotations of which boxes are compared with areas, and with outlines."""
WANTED = "COCO's detection JSON (an object with the lists `images`, `annotations`, `categories`)"


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the file. Ids with the same name are one class: a labelling tool writes each
    set's first class twice, once as the parent of all. A class without a box that is only the parent of
    others is no class of the set. Two categories with the same id are an error.
    """
    path = files.annotations
    names: dict[int | str, str] = {}
    supers: dict[str, str] = {}
    frequency: dict[str, str] = {}
    used = set[int | float | str]()
    federated, components = False, files.options.get("name_parts", 0)
    if not isinstance(components, int):
        raise InputError(f"{files.name}: options.name_parts: found {components!r}; want a number of path components")
    evidence = _Evidence()
    for section, row in stream_sections(path, ("images", "annotations", "categories"), WANTED, index):
        if section == "images":
            with index.bad.row():
                number = want(row, "id", f"{path}: images")
                absent = row.get("neg_category_ids")
                federated |= absent is not None
                key, file = row_key(row), _file(row, components, f"{path}: image {number}")
                incomplete = None if row.get("not_exhaustive_unknown") else row.get("not_exhaustive_category_ids")
                shared = file if key is None else None  # export-labels writes a row for each record
                index.image(number, (file, size_of(row), absent, incomplete, key), key, file=shared)
        elif section == "annotations":
            if "tokens_positive" in row:  # MDETR's file has a single category, "object"
                raise InputError(
                    f"{path}: want {WANTED}; found MDETR's (annotations with `tokens_positive`: format mdetr)"
                )
            category, bbox = row.get("category_id"), row.get("bbox")
            evidence.compare(row, bbox)
            if isinstance(category, int | float | str):
                used.add(category)
            add_annotation(index, row, category, upright_box(row, bbox), ignore_flag(row))
        else:
            number, name = want(row, "id", f"{path}: categories"), row.get("name")
            name = class_name("" if name is None else str(name))
            if not name:
                log.warning("%s: category %r has no name", path, number)
            if number in names:
                raise InputError(f"{path}: duplicate category {number}: {names[number]!r} and {name!r}")
            if name and name in names.values():
                log.warning("%s: category %r has several ids; they are one class", path, name)
            names[number] = name
            if class_name(row.get("supercategory")) not in ("", name):
                supers[name] = class_name(row["supercategory"])
            if row.get("frequency") in ("r", "c", "f"):
                frequency[name] = row["frequency"]
    evidence.judge(path)
    boxed = {name for number, name in names.items() if number in used}
    listed = {name.casefold(): name for name in names.values()}
    supers = {name: listed.get(upper.casefold(), upper) for name, upper in supers.items()}
    roots = (set(supers.values()) & set(names.values())) - boxed
    if roots:
        log.warning("%s: %s: no box, and only above other classes; not classes of the set", path, sorted(roots))
    ordered = [names[n] for n in sorted(names, key=lambda n: (isinstance(n, str), n))]
    space = [name for name in dict.fromkeys(ordered) if name and name not in roots]
    if not federated:
        warn_of_unboxed(path, space, boxed)
    header = {"names": names, "label_space": space, "federated": federated, "frequency": frequency or None}
    above = {name: sorted(uppers) for name in space if (uppers := _above(name, supers) & set(space))}
    return header | ({"above": above} if above else {})


def stream_sections(path: str, lists: Collection[str], wanted: str, index: IndexWriter) -> Iterator[tuple[str, Any]]:
    """(section, row) of a file in COCO's or MDETR's layout; annotations that are no objects are counted."""
    for section, row in stream_object(path, lists, wanted):
        if section == "annotations" and not isinstance(row, dict):
            error = InputError(f"{path}: annotations: want objects; found {str(row)[:40]!r}")
            index.bad.add(error, unit="regions")
        else:
            yield section, row


def add_annotation(index: IndexWriter, row: dict[str, Any], *fields: Any) -> None:
    """Store an annotation: ``fields``, then its provenance and exact corners, as export-labels writes them."""
    index.row(row.get("image_id"), (*fields, provenance_of(row) or None, row.get("xyxy")))


def _above(name: str, supers: dict[str, str]) -> set[str]:
    """All classes above one."""
    above, upper = set[str](), supers.get(name, "")
    while upper and upper not in above:
        above.add(upper)
        upper = supers.get(upper, "")
    return above - {name}


def upright_box(row: dict[str, Any], bbox: Any) -> Any:
    """The box; if a labelling tool (CVAT) states its rotation, the box around the turned one."""
    attributes = row.get("attributes")
    places = (row, attributes if isinstance(attributes, dict) else {})
    degrees = next((place[name] for place in places for name in ("rotation", "angle") if place.get(name)), None)
    return turned(bbox, degrees) if degrees else bbox


class _Evidence:
    """Compares boxes with the stated areas, which tell corners from x, y, width, height, and with the
    outlines (of the first annotations only).
    """

    def __init__(self) -> None:
        self.areas = AreaEvidence()
        self.seen = self.outlines = self.apart = 0
        self.outline = ""

    def compare(self, row: dict[str, Any], bbox: Any) -> None:
        """Compare an annotation's box."""
        self.seen += 1
        if self.seen > MAX_COMPARED or not is_four_numbers(bbox):
            return
        self.areas.compare(bbox, row.get("area"))  # one that is smaller than the box is a mask's
        x, y, w, h = bbox
        outline = row.get("segmentation")
        if self.outlines >= MAX_OUTLINES or type(outline) is not list or not all(type(p) is list for p in outline):
            return
        values = [value for polygon in outline for value in polygon]
        if len(values) < 6 or not all(map(is_number, values)):
            return
        self.outlines += 1
        around = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
        if any(abs(a - b) > 2 + 0.05 * max(w, h) for a, b in zip(around, (x, y, x + w, y + h))):
            self.apart += 1
            self.outline = self.outline or f"bbox {bbox}, corners of the outline {around}"

    def judge(self, path: str) -> None:
        """Warn of boxes that are not those of their outlines.

        Raises:
            InputError: the areas show that boxes are corners.
        """
        if self.apart > 0.5 * self.outlines:
            log.warning(
                "%s: %d of the first %d boxes are not around their `segmentation` (%s): are they x, y, width, height "
                "in pixels of the same image?",
                path, self.apart, self.outlines, self.outline,
            )  # fmt: skip
        if shown := self.areas.found("bbox "):
            raise InputError(f"{path}: `bbox`: found corners {shown}; want x, y, width, height")


def fill_lvis(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read LVIS' file. COCO's is refused: its classes without a box would count as absent."""
    header = fill(files, index)
    index.bad.check()
    if not header["federated"]:
        raise InputError(
            f"{files.annotations}: want LVIS' JSON, whose images have `neg_category_ids`; found none, as in COCO's "
            "(format coco)"
        )
    return header


def _file(row: dict[str, Any], components: int, where: str) -> str:
    """File name of an image; LVIS only states its COCO URL: .../train2017/000000391895.jpg."""
    if "file_name" not in row and isinstance(row.get("coco_url"), str):
        return "/".join(urlparse(row["coco_url"]).path.split("/")[-2:])
    file = want(row, "file_name", where)
    if not isinstance(file, str) or not file.strip():
        raise InputError(f"{where}: `file_name`: found {file!r}; want the name of a file")
    return "/".join(re.split(r"[/\\]", file)[-components:]) if components else file


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry. ``iscrowd`` regions become ignore regions. Images without annotations are
    kept as negatives.
    """
    _, size, absent, incomplete, key = entry.image
    names = header["names"]
    labels = LabelCollector()
    for category, bbox, crowd, origin, xyxy in entry.rows:
        label = names.get(category) if isinstance(category, int | float | str) else None
        if not label:  # unknown, or its name is empty
            labels.unknown(f"`category_id` {category!r}", names)
        else:
            labels.add(xywh_box(bbox, size, labels.lost, xyxy), label, ignore=crowd, **origin or {})
    present = {r.phrase for r in labels.regions}
    unclear = unclear_names(present, header["above"]) if header.get("above") else set()
    verified_absent = None
    if header["federated"]:
        verified_absent = tuple(sorted(_named(names, absent or (), "neg_category_ids") - present - unclear))
    not_exhaustive = None
    if incomplete is not None:
        not_exhaustive = tuple(sorted(_named(names, incomplete, "not_exhaustive_category_ids")))
    if unclear and not header["federated"]:
        not_exhaustive = tuple(sorted(unclear.union(not_exhaustive or ())))
    return labels.image(entry, size, key=key, verified_absent=verified_absent, not_exhaustive=not_exhaustive)


def _named(names: Mapping[Any, str], numbers: Collection[Any], field: str) -> set[str]:
    """Names of listed classes. Raises ValueError if there are such and none of them is known."""
    found = {names[number] for number in numbers if names.get(number)}
    if numbers and not found:
        raise ValueError(f"`{field}` {list(numbers)[:6]}: no class has such an id; {known_names(names)}")
    return found


FORMAT = Format(
    "detection", WANTED, fill, labelled,
    options={"name_parts": "last components of a path to keep (Objects365: 2, patch0/x.jpg of images/v1/patch0/x.jpg)"},
)  # fmt: skip
LVIS = replace(FORMAT, fill=fill_lvis)
