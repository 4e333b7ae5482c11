"""What a human-labelled format gives: images with their regions, checked, everything that went counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.records import Box, Region


@dataclass(frozen=True)
class Labelled:
    """One image of a set. ``lost`` counts regions that could not be used, by reason; ``size`` is what the file claims."""

    key: str
    file_name: str
    size: tuple[int, int] | None
    caption: str | None = None
    regions: tuple[Region, ...] = ()
    lost: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledSet:
    """A set as its file describes it. ``label_space``: class names in id order, of sets labelled by name.

    ``lost`` counts regions that belong to no image of the file.
    """

    kind: Literal["detection", "grounding"]
    images: tuple[Labelled, ...]
    label_space: tuple[str, ...] | None = None
    lost: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Gathered:
    """An image's row of a label file, and what its annotations came to so far."""

    row: Mapping[str, Any]
    size: tuple[int, int] | None
    regions: list[Region] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)


class ImageTable:
    """The images of a label file by id, as its annotations are added to them; images without any are kept.

    Raises:
        InputError: an image without an id, or two of one id.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], path: Path) -> None:
        self._path = path
        self._images: dict[Any, Gathered] = {}
        self._homeless: Counter[str] = Counter()
        for row in rows:
            number = want(row, "id", f"{path}: images")
            if number in self._images:
                raise InputError(f"{path}: image id {number} is there twice")
            self._images[number] = Gathered(row, size_of(row))

    def of(self, annotation: Mapping[str, Any]) -> Gathered | None:
        """The image that an annotation belongs to; None, counted as ``unknown_image``, if it is not in the file."""
        image = self._images.get(annotation.get("image_id"))
        if image is None:
            self._homeless["unknown_image"] += 1
        return image

    def labelled(
        self, kind: Literal["detection", "grounding"], label_space: tuple[str, ...] | None = None
    ) -> LabelledSet:
        """The set, its images in id order, each with the caption that its row has.

        Raises:
            InputError: an image without ``file_name``.
        """
        images = tuple(
            Labelled(
                key=image_key(number),
                file_name=str(want(image.row, "file_name", f"{self._path}: image {number}")),
                size=image.size,
                caption=image.row.get("caption") if kind == "grounding" else None,
                regions=tuple(image.regions),
                lost=image.lost,
            )
            for number, image in sorted(self._images.items(), key=lambda item: item[0])
        )
        return LabelledSet(kind=kind, images=images, label_space=label_space, lost=self._homeless)


def read_json(path: Path, lists: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object holding the named lists.

    Raises:
        InputError: no such file, not JSON, or a list is missing.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    for name in lists:
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            raise InputError(f"{path}: want an object with a list `{name}`")
    return data


def want(row: Mapping[str, Any], name: str, where: str) -> Any:
    """A field that a row must have."""
    if name not in row:
        raise InputError(f"{where}: `{name}` is missing; it has {sorted(row)}")
    return row[name]


def image_key(image_id: Any) -> str:
    """A sample's key from an image's id: unique in the set, and free of dots and slashes as tar keys must be."""
    if isinstance(image_id, int):
        return f"{image_id:09d}"
    return str(image_id).replace("/", "_").replace(".", "_")


def box_of(row: Mapping[str, Any], size: tuple[int, int] | None, lost: Counter[str]) -> Box | None:
    """xyxy of an annotation's xywh ``bbox``, clipped to the image; None (and counted) if nothing of it is left."""
    bbox = row.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, int | float) for v in bbox):
        lost["bad_box"] += 1
        return None
    x1, y1, x2, y2 = bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]
    if not (x2 > x1 and y2 > y1):
        lost["box_without_area"] += 1
        return None
    if size is not None:
        x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(size[1]), x2), min(float(size[0]), y2)
        if not (x2 > x1 and y2 > y1):
            lost["box_outside_image"] += 1
            return None
    return float(x1), float(y1), float(x2), float(y2)


def size_of(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that the file states, if it does."""
    if image.get("height") and image.get("width"):
        return int(image["height"]), int(image["width"])
    return None
