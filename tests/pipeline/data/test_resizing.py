"""Undoing a crawler's resizing: which part of an image shows the original."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import ImageError, open_image
from pipeline.data.resizing import WHOLE, original_size, shown_part, stated_original
from tests.fixtures.img2dataset import MODES, resized, scene

SIZES = [(170, 110), (110, 170), (161, 160), (400, 100), (120, 119), (130, 126), (128, 128)]


def noise(size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def stored(image: Image.Image, mode: str, quality: int) -> tuple[Image.Image, tuple[int, int]]:
    """(decoded, (height, width)) of the image as the mode stores it."""
    small, data = resized(image, mode), io.BytesIO()
    small.save(data, "JPEG", quality=quality)
    return open_image(data.getvalue()), (small.height, small.width)


@pytest.mark.parametrize("quality", [60, 95])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("drawn", [scene, noise])
def test_each_resize_mode_is_known_by_its_sizes_and_pixels(drawn, size, mode, quality):
    image = drawn(1, size) if drawn is scene else drawn(size)
    picture, shape = stored(image, mode, quality)
    original = (size[1], size[0])
    changed = max(size) * 128 // min(size) >= 130 and mode in ("border", "center_crop")
    if changed and mode == "center_crop":
        with pytest.raises(ImageError, match=f"original_width {size[0]} and original_height {size[1]}: cropped"):
            shown_part(picture, shape, original)
        return
    part = shown_part(picture, shape, original)
    if not changed:
        assert part == WHOLE
        return
    scale = 128 / max(size)
    left, top = (128 - size[0] * scale) / 2, (128 - size[1] * scale) / 2
    np.testing.assert_allclose(np.array(part) * 128, (left, top, 128 - left, 128 - top), atol=1)


def test_other_shapes_are_not_guessed_at():
    with pytest.raises(ImageError, match="neither its shape nor a square") as error:
        shown_part(noise((100, 80)), (80, 100), (100, 300))
    assert error.value.reason == "reshaped_image"
    assert shown_part(noise((100, 80)), (80, 100), (1000, 800)) == WHOLE  # turned by its EXIF


def test_without_a_stated_size_equal_white_margins_of_a_square_are_padding():
    picture, shape = stored(scene(1, (170, 110)), "border", 90)
    assert shown_part(picture, shape, None) == pytest.approx((0, 22 / 128, 1, 106 / 128), abs=0.02)
    thing = Image.new("RGB", (128, 128), "white")
    thing.paste(noise((60, 60)), (30, 34))  # an object on white
    assert shown_part(thing, (128, 128), None) == shown_part(noise((128, 128)), (128, 128), None) == WHOLE
    white = Image.new("RGB", (128, 128), "white")
    assert shown_part(white, (128, 128), None) == WHOLE


@pytest.mark.parametrize("value", [None, "wide", "nan", True, float("nan"), float("inf"), 0, -1, 1e30, [170]])
def test_a_size_that_is_none_is_not_stated(value):
    assert original_size({"original_width": value, "original_height": 110}) is None
    assert original_size([value]) is None
    assert stated_original(b'{"original_width": broken') is stated_original(b"[1]") is stated_original(None) is None


def test_a_size_may_be_text():
    assert original_size({"original_width": "170", "original_height": "110.0"}) == (110, 170)
