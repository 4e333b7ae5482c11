"""What a human-labelled format gives: images with their regions, checked, everything that went counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
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
