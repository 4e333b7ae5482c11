"""A photograph is known again after what crawls do to it; different ones, and blank ones, are not."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import open_image
from pipeline.dedup.perceptual_hash import DECODED_SIDE, MIRROR, ImageHash, hamming, hash_image
from pipeline.dedup.search import MatchRules
from tests.fixtures.photos import CHANGES, encoded, photos

RULES = MatchRules()
TEXTURES = {"brick", "grass"}
"""The same all over: a crop of two per cent moves every brick."""


def hashed(data: bytes) -> ImageHash:
    return hash_image(open_image(data, at_least=(DECODED_SIDE, DECODED_SIDE)))


def alike(one: ImageHash, other: ImageHash, mirrored: bool = False) -> bool:
    far = one.words ^ (other.words ^ MIRROR if mirrored else other.words)
    bits = np.bitwise_count(far)
    return bool(bits[0] <= RULES.distance and bits.sum() <= RULES.details)


@pytest.fixture(scope="module")
def originals() -> dict[str, ImageHash]:
    return {name: hashed(encoded(image, 95)) for name, image in photos().items()}


@pytest.mark.parametrize("change", [c for c in CHANGES if c[:6] not in {"crop_3", "crop_5"}])
def test_copies_are_found(originals, change):
    missed = {n for n, image in photos().items() if not alike(hashed(CHANGES[change](image)), originals[n])}
    assert missed <= (TEXTURES if change.startswith("crop_2") else set())


def test_mirrored_copies_are_found_by_turning_bits(originals):
    for name, image in photos().items():
        mirrored = hashed(encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
        assert alike(mirrored, originals[name], mirrored=True)


def test_different_photographs_are_told_apart(originals):
    for (_, one), (_, other) in itertools.combinations(originals.items(), 2):
        for mirrored in (False, True):
            assert not alike(one, other, mirrored)
            details = hamming(one.words[None], other.words[None])[0]
            assert details > 90  # with room


def test_parts_of_one_photograph_are_different_images():
    for image in photos().values():
        w, h = image.width // 2, image.height // 2
        parts = [hashed(encoded(image.crop((x, y, x + w, y + h)))) for x in (0, w) for y in (0, h)]
        solid = [p for p in parts if not p.flat]
        assert not any(alike(a, b) for a, b in itertools.combinations(solid, 2))


def test_blank_images_and_plain_gradients_are_flat():
    y, x = np.mgrid[:200, :300]
    noise = np.random.default_rng(0).standard_normal((200, 300))
    for values in (
        np.full((200, 300), 255.0),
        np.zeros((200, 300)),
        128 + 3 * noise,
        y * 1.2,
        (x + y) / 2,
        255 - x / 2,
    ):
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
        for quality in (95, 50):
            assert hashed(encoded(image, quality)).flat


def test_every_mode_and_orientation_gives_the_same_hash(originals):
    image = photos()["chelsea"]
    lying = Image.Exif()
    lying[0x0112] = 6  # shown turned by a quarter
    turned = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(turned, "JPEG", quality=95, exif=lying)
    sixteen = io.BytesIO()
    grey = np.asarray(image.convert("L"), np.uint16) * 257
    Image.fromarray(grey).save(sixteen, "PNG")
    cmyk = io.BytesIO()
    image.convert("CMYK").save(cmyk, "JPEG", quality=95)
    palette = io.BytesIO()
    image.quantize(256).save(palette, "PNG")
    for data in (turned, sixteen, cmyk, palette):
        assert alike(hashed(data.getvalue()), originals["chelsea"])
