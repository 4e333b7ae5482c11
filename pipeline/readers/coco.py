"""COCO's detection JSON (COCO, Objects365, ODinW, LVIS): boxes with class names.

LVIS (arXiv 1908.03195) is federated: ``neg_category_ids`` of an image are verified absent,
``not_exhaustive_category_ids`` are present with more instances than boxes, and the presence of most
other classes is unknown. ``key`` of an image, and ``score``, ``annotator`` and ``root`` of an
annotation, are additions of export-labels.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any
from urllib.parse import urlparse

from pipeline.data.keys import image_key, row_key
from pipeline.errors import InputError
from pipeline.readers.base import (
    Format,
    Header,
    ImageLocation,
    LabelCollector,
    LabelledImage,
    SetFiles,
    provenance_of,
    size_of,
    want,
    xywh_box,
)
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.json_stream import stream_object

log = logging.getLogger("glip_self_train")
WANTED = "COCO's detection JSON (an object with the lists `images`, `annotations`, `categories`)"


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the file. Ids with the same name are one class: a labelling tool writes each
    set's first class twice, once as the parent of all. Two categories with the same id are an error.
    """
    path = files.annotations
    names: dict[int | str, str] = {}
    frequency: dict[str, str] = {}
    federated, components = False, files.options.get("name_parts", 0)
    if not isinstance(components, int):
        raise InputError(f"{files.name}: options.name_parts: found {components!r}; want a number of path components")
    for section, row in stream_object(path, ("images", "annotations", "categories"), WANTED):
        if section == "images":
            number = want(row, "id", f"{path}: images")
            absent = row.get("neg_category_ids")
            federated |= absent is not None
            key, file = row_key(row), _file(row, components, f"{path}: image {number}")
            incomplete = None if row.get("not_exhaustive_unknown") else row.get("not_exhaustive_category_ids")
            index.image(number, (file, size_of(row), absent, incomplete, key), key)
        elif section == "annotations":
            if not isinstance(row, dict):
                raise InputError(f"{path}: annotations: want objects; found {str(row)[:40]!r}")
            if "tokens_positive" in row:  # MDETR's file has a single category, "object"
                raise InputError(
                    f"{path}: want {WANTED}; found MDETR's (annotations with `tokens_positive`: format mdetr)"
                )
            fields = (row.get("category_id"), row.get("bbox"), bool(row.get("iscrowd")))
            index.row(row.get("image_id"), (*fields, provenance_of(row) or None, row.get("xyxy")))
        else:
            number, name = want(row, "id", f"{path}: categories"), want(row, "name", f"{path}: categories")
            name = "" if name is None else str(name)
            if number in names:
                raise InputError(f"{path}: duplicate category {number}: {names[number]!r} and {name!r}")
            name = name if name.strip() else ""
            if name and name in names.values():
                log.warning("%s: category %r has several ids; they are one class", path, name)
            names[number] = name
            if row.get("frequency") in ("r", "c", "f"):
                frequency[name] = row["frequency"]
    ordered = [names[n] for n in sorted(names, key=lambda n: (isinstance(n, str), n))]
    space = [name for name in dict.fromkeys(ordered) if name]
    return {"names": names, "label_space": space, "federated": federated, "frequency": frequency or None}


def fill_lvis(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read LVIS' file. COCO's is refused: its classes without a box would count as absent."""
    header = fill(files, index)
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
    return "/".join(str(want(row, "file_name", where)).split("/")[-components:])


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry. ``iscrowd`` regions become ignore regions. Images without annotations are
    kept as negatives.
    """
    file, size, absent, incomplete, key = entry.image
    names = header["names"]
    labels = LabelCollector()
    for category, bbox, crowd, origin, xyxy in entry.rows:
        label = names.get(category) if isinstance(category, int | float | str) else None
        if not label:  # unknown, or its name is empty
            labels.lost["unknown_category"] += 1
        else:
            labels.add(xywh_box(bbox, size, labels.lost, xyxy), label, ignore=crowd, **origin or {})
    verified_absent = None
    if header["federated"]:
        present = {r.phrase for r in labels.regions}
        verified_absent = tuple(sorted({names[n] for n in absent or () if names.get(n)} - present))
    not_exhaustive = None if incomplete is None else tuple(sorted({names[n] for n in incomplete if names.get(n)}))
    return labels.image(
        key or image_key(entry.id),
        ImageLocation(file),
        size,
        verified_absent=verified_absent,
        not_exhaustive=not_exhaustive,
    )


FORMAT = Format(
    "detection", WANTED, fill, labelled,
    options={"name_parts": "last components of a path to keep (Objects365: 2, patch0/x.jpg of images/v1/patch0/x.jpg)"},
)  # fmt: skip
LVIS = replace(FORMAT, fill=fill_lvis)
