"""Boxes of annotations: checked, turned, and clipped to the image."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from pipeline.data.records import Box
from pipeline.readers.base import CUT, lose


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite int or float of a plausible magnitude."""
    return type(value) in _NUMBERS and abs(value) < _TOO_LARGE


_NUMBERS = frozenset((int, float))
_TOO_LARGE = 1e15
"""Larger than any coordinate. Comparison with it also excludes nan."""


class AreaEvidence:
    """Compares boxes with the stated areas, which tell corners from x, y, width, height.

    Attributes:
        compared: number of boxes with a stated area.
        other: number of those whose area is that of the other layout.
        first: the first of these.
    """

    def __init__(self, *, corners: bool = False) -> None:
        self._corners, self.compared, self.other, self.first = corners, 0, 0, ""

    def compare(self, bbox: Any, area: Any) -> None:
        """Compare a box; one that has another form is skipped."""
        if not (is_number(area) and area > 0 and is_four_numbers(bbox)):
            return
        x, y, w, h = bbox
        self.compared += 1
        sides, between = w * h, (w - x) * (h - y)
        this, that = (between, sides) if self._corners else (sides, between)
        if is_near(area, that) and not is_near(area, this) and (self._corners or (w > x and h > y)):
            self.other += 1
            self.first = self.first or f"{bbox}, area {area}"

    def found(self, name: str = "") -> str:
        """Text of the evidence for the other layout, in which boxes have a name; "" unless most show it."""
        if self.other <= 0.5 * self.compared:
            return ""
        return f"by the stated areas, in {self.other} of {self.compared} ({name}{self.first})"


def is_four_numbers(bbox: Any) -> bool:
    """Whether ``bbox`` is a list of four finite numbers."""
    return type(bbox) is list and len(bbox) == 4 and all(map(is_number, bbox))


def is_near(one: float, other: float) -> bool:
    """Whether two sizes differ by a hundredth at most."""
    return abs(one - other) <= 0.01 * max(abs(one), abs(other))


def turned(bbox: Any, degrees: Any) -> Any:
    """The box (x, y, width, height) around ``bbox`` turned about its centre; ``bbox`` itself if it
    or ``degrees`` is no number, or nothing is turned.
    """
    try:
        angle, (x, y, w, h) = math.radians(float(degrees)), map(float, bbox)
    except (TypeError, ValueError):
        return bbox
    if not math.isfinite(angle) or not math.fmod(angle, math.pi):
        return bbox
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    wide, high = w * cos + h * sin, w * sin + h * cos
    return [round(v, 6) for v in (x + (w - wide) / 2, y + (h - high) / 2, wide, high)]


def _is_box(bbox: Any, lost: Counter[str]) -> bool:
    four = type(bbox) in (list, tuple) and len(bbox) == 4 and _NUMBERS.issuperset(map(type, bbox))
    if four and abs(sum(bbox)) < _TOO_LARGE:  # false if any of them is nan
        return True
    rotated = " (of rotated boxes want those around them)" if type(bbox) in (list, tuple) and len(bbox) > 4 else ""
    lose(lost, "bad_box", f"{bbox!r}; want four numbers{rotated}")
    return False


def xywh_box(bbox: Any, size: tuple[int, int] | None, lost: Counter[str], xyxy: Any = None) -> Box | None:
    """COCO ``bbox`` (x, y, width, height) -> xyxy clipped to the image; None, and counted in
    ``lost``, if invalid.

    Args:
        bbox: from the annotation, of any type.
        size: (height, width) of the image, if known.
        lost: counts the reason.
        xyxy: exact corners, which export-labels adds where x + width is rounded; ignored if they
            differ from ``bbox``.
    """
    if not _is_box(bbox, lost):
        return None
    x, y, w, h = bbox
    box = (x, y, x + w, y + h)
    if type(xyxy) is list and len(xyxy) == 4 and all(is_number(v) and abs(v - b) < 1e-6 for v, b in zip(xyxy, box)):
        box = (xyxy[0], xyxy[1], xyxy[2], xyxy[3])
    return clipped(box, size, lost)


def xyxy_box(bbox: Any, size: tuple[int, int] | None, lost: Counter[str], *, beyond: int = 0) -> Box | None:
    """As :func:`xywh_box`, of corners. ``beyond``: added to x2 and y2; 1 if they are inclusive."""
    return clipped((bbox[0], bbox[1], bbox[2] + beyond, bbox[3] + beyond), size, lost) if _is_box(bbox, lost) else None


def clipped(box: Box, size: tuple[int, int] | None, lost: Counter[str]) -> Box | None:
    """Clip a box to an image of (height, width); None, and counted, if no area is left.

    A kept box that loses more than a tenth of its area is counted as ``CUT``.
    """
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        lose(lost, "box_without_area", f"the corners {list(box)}")
        return None
    if size is not None and (x1 < 0 or y1 < 0 or x2 > size[1] or y2 > size[0]):
        x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(size[1]), x2), min(float(size[0]), y2)
        if not (x2 > x1 and y2 > y1):
            lose(lost, "box_outside_image", _outside(box, size))
            return None
        if (x2 - x1) * (y2 - y1) < 0.9 * (box[2] - box[0]) * (box[3] - box[1]):
            lose(lost, CUT, _outside(box, size))
    return float(x1), float(y1), float(x2), float(y2)


def _outside(box: Box, size: tuple[int, int]) -> str:
    limits = "0 to 1, shares of the image" if size == (1, 1) else f"an image of {size[1]} x {size[0]}"
    return f"the corners {list(box)}; want them in {limits}"
