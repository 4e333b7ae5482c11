"""COCO's detection JSON (COCO, Objects365, OpenImages as converted, our evaluation sets): boxes with class names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pipeline.errors import InputError
from pipeline.records import Region
from pipeline.sources.base import Labelled, LabelledSet, box_of, image_key, read_json, size_of, want


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
    images = {}
    for image in data["images"]:
        number = want(image, "id", f"{path}: images")
        if number in images:
            raise InputError(f"{path}: image id {number} is there twice")
        images[number] = image
    regions: dict[int, list[Region]] = {number: [] for number in images}
    lost: dict[int, Counter[str]] = {number: Counter() for number in images}
    homeless: Counter[str] = Counter()
    for row in data["annotations"]:
        number = row.get("image_id")
        if number not in images:
            homeless["unknown_image"] += 1
            continue
        label = names.get(row.get("category_id"))
        if label is None:
            lost[number]["unknown_category"] += 1
            continue
        box = box_of(row, size_of(images[number]), lost[number])
        if box is not None:
            regions[number].append(Region(box=box, phrase=label, ignore=bool(row.get("iscrowd"))))
    return LabelledSet(
        kind="detection",
        images=tuple(
            Labelled(
                key=image_key(number),
                file_name=str(want(images[number], "file_name", f"{path}: image {number}")),
                size=size_of(images[number]),
                regions=tuple(regions[number]),
                lost=lost[number],
            )
            for number in sorted(images)
        ),
        label_space=tuple(names[number] for number in sorted(names)),
        lost=homeless,
    )
