"""COCO's detection JSON (COCO, Objects365, OpenImages as converted, our evaluation sets): boxes with class names."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from pipeline.records import Region
from pipeline.sources.base import ImageTable, LabelledSet, box_of, read_json, want


def read_coco(path: str | Path) -> LabelledSet:
    """All images of the file in id order; images without annotations are kept, as they teach absence.

    ``iscrowd`` regions become ignore regions. Regions are lost as ``bad_box``, ``box_without_area``,
    ``box_outside_image``, ``unknown_category`` or ``unknown_image``.

    Raises:
        InputError: not COCO's layout, two categories of one id or name, or two images of one id; each named.
    """
    path = Path(path)
    data = read_json(path, ("images", "annotations", "categories"))
    names: dict[int, str] = {}
    for row in data["categories"]:
        number, name = want(row, "id", f"{path}: categories"), str(want(row, "name", f"{path}: categories"))
        if number in names or name in names.values():
            raise InputError(f"{path}: category {number} {name!r} is there twice")
        names[number] = name
    images = ImageTable(data["images"], path)
    for row in data["annotations"]:
        image = images.of(row)
        if image is None:
            continue
        label = names.get(row.get("category_id"))
        if label is None:
            image.lost["unknown_category"] += 1
            continue
        box = box_of(row, image.size, image.lost)
        if box is not None:
            image.regions.append(Region(box=box, phrase=label, ignore=bool(row.get("iscrowd"))))
    return images.labelled("detection", tuple(names[number] for number in sorted(names)))
