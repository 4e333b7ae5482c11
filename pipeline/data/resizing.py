"""Undoing a crawler's resizing: the part of a stored image that shows the original.

img2dataset resizes by ``border`` (its default: padded with white to a square), ``center_crop`` (the
middle square), or without a change of shape, and states ``original_width`` and ``original_height``
in ``KEY.json``. Sizes are (height, width), parts (left, top, right, bottom) as shares of the stored
image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.images import ImageError
from pipeline.data.records import Box

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_WHITE = 225
"""Grey level from which a pixel counts as white."""
_BLOCK = 8
"""Pixels of the padding next to the image that JPEG's blocks may mix with it."""
_MARGIN = 0.02
"""Smallest share of the image that counts as a margin where no original size is stated."""


def size_of(row: Any, height: str = "height", width: str = "width") -> tuple[int, int] | None:
    """(height, width) stated in a row, as numbers or as text; None if missing or invalid."""
    if not isinstance(row, Mapping):
        return None
    try:
        sides = [float(row[name]) for name in (height, width) if not isinstance(row[name], bool)]
    except (KeyError, TypeError, ValueError):
        return None
    return (int(sides[0]), int(sides[1])) if len(sides) == 2 and all(1 <= v < 1 << 31 for v in sides) else None


original_size = partial(size_of, height="original_height", width="original_width")
"""Size of the original image stated in a crawler's row, or None."""


def stated_original(data: bytes | None) -> tuple[int, int] | None:
    """:func:`original_size` of a KEY.json."""
    if data is None or b"original_width" not in data:
        return None
    try:
        return original_size(json.loads(data))
    except ValueError:
        return None


def padded_part(size: tuple[int, int], original: tuple[int, int]) -> Box | None:
    """Part of a square that the original fills if it is padded; None if the shape is unchanged.

    Raises:
        ImageError: ``reshaped_image``: another shape, but no square.
    """
    (height, width), (h, w) = size, original
    if min(abs(width * h - height * w), abs(width * w - height * h)) <= max(h, w):  # also turned by its EXIF
        return None
    if height != width:
        raise ImageError("reshaped_image", f"{_sizes(size, original)}: neither its shape nor a square")
    inner = round(height * min(h, w) / max(h, w))
    if height - inner <= 1:
        return None
    start = (height - inner) // 2
    share = (start / height, (start + inner) / height)
    return (0.0, share[0], 1.0, share[1]) if w > h else (share[0], 0.0, share[1], 1.0)


def shown_part(image: Image.Image, size: tuple[int, int], original: tuple[int, int] | None) -> Box:
    """Part of an image that shows the original.

    Args:
        image: decoded, maybe at a fraction of its ``size``.
        original: as stated; without it, equal white margins at two opposite sides of a square count
            as padding.

    Raises:
        ImageError: ``cropped_image``: a square that is not padded, of an original of another shape;
            ``reshaped_image``.
    """
    if original is None:
        return _within_margins(image) if size[0] == size[1] else WHOLE
    part = padded_part(size, original)
    if part is None:
        return WHOLE
    if not _is_padded(image, part):
        raise ImageError("cropped_image", f"{_sizes(size, original)}: cropped to a square")
    return part


def _sizes(size: tuple[int, int], original: tuple[int, int]) -> str:
    return (
        f"stored with width {size[1]} and height {size[0]}, original_width {original[1]} and original_height "
        f"{original[0]}"
    )


def _is_padded(image: Image.Image, part: Box) -> bool:
    """Whether a square is white outside of ``part``."""
    pixels = np.asarray(image.convert("L"))
    upright = pixels if part[0] == 0 else pixels.T
    first, last = (part[1], part[3]) if part[0] == 0 else (part[0], part[2])
    for side, thickness in ((upright, first), (upright[::-1], 1 - last)):
        rows = round(thickness * len(upright))
        clear = rows > 2 * _BLOCK
        bar = side[: rows - _BLOCK] if clear else side[: max(1, rows // 2)]
        if (bar >= (_WHITE if clear else 0.8 * _WHITE)).mean() < (0.95 if clear else 0.6):
            return False
    return True


def _within_margins(image: Image.Image) -> Box:
    """Part of a square between equal white margins, either above and below or at left and right."""
    pixels = np.asarray(image.convert("RGB")).min(2)
    side = len(pixels)
    found: list[tuple[bool, int, int]] = []
    for vertical in (True, False):
        white = (pixels >= _WHITE).mean(int(vertical)) >= 0.98
        first, last = int(np.argmin(white)), int(np.argmin(white[::-1]))
        if min(first, last) >= _MARGIN * side:
            found.append((vertical, first, last))
    if len(found) != 1:  # none, or an object on white
        return WHOLE
    ((vertical, first, last),) = found
    if abs(first - last) > max(2, _MARGIN * side):
        return WHOLE
    margin = min(first, last) / side
    return (0.0, margin, 1.0, 1 - margin) if vertical else (margin, 0.0, 1 - margin, 1.0)
