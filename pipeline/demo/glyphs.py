"""Glyphs of icon fonts as masks, rendered once and then mirrored, rotated and resized."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.demo.manifest import FontEntry
from pipeline.errors import InputError

MASTER = 96
"""Longer side of a rendered mask in pixels."""
INK = 64
"""Minimum mask value (of 255) of a pixel that belongs to a glyph's box."""
TURN = 3
"""Step of rotations in degrees; the rotated masks are cached."""

Mask = NDArray[np.uint8]


class GlyphBook:
    """Masks of all nouns in the given font families.

    Raises:
        InputError: a font is missing, has another version, or has an empty glyph.
    """

    def __init__(self, fonts: Mapping[str, FontEntry]) -> None:
        self._masters: dict[tuple[str, str], list[Image.Image]] = {}
        for family, entry in fonts.items():
            font = ImageFont.truetype(str(entry.path()), MASTER, layout_engine=ImageFont.Layout.BASIC)
            for noun, characters in entry.codepoints().items():
                names = entry.glyphs[noun]
                self._masters[family, noun] = [
                    _render(font, c, f"{entry.title}: {n}") for c, n in zip(characters, names, strict=True)
                ]
        self._turned = lru_cache(maxsize=8192)(self._turn)

    def families(self, noun: str) -> tuple[str, ...]:
        """Families with glyphs of ``noun``, in the given order."""
        return tuple(family for family, name in self._masters if name == noun)

    def drawings(self, family: str, noun: str) -> int:
        """Number of glyphs of ``noun`` in a family."""
        return len(self._masters[family, noun])

    def mask(self, family: str, noun: str, drawing: int, *, side: int, turns: int, mirrored: bool) -> Mask:
        """Mask of a glyph, (height, width) uint8, cropped to pixels of at least ``INK``.

        Args:
            side: longer side in pixels; the result may have one less.
            turns: counter-clockwise rotation in steps of ``TURN`` degrees.
            mirrored: flip horizontally before rotating.
        """
        turned = self._turned(family, noun, drawing, turns, mirrored)
        scale = side / max(turned.size)
        size = (max(1, round(turned.width * scale)), max(1, round(turned.height * scale)))
        return _tight(np.asarray(turned.resize(size, Image.Resampling.BOX)))

    def _turn(self, family: str, noun: str, drawing: int, turns: int, mirrored: bool) -> Image.Image:
        master = self._masters[family, noun][drawing]
        if mirrored:
            master = master.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if turns:
            master = master.rotate(turns * TURN, Image.Resampling.BICUBIC, expand=True)
        return Image.fromarray(_tight(np.asarray(master)))


def _render(font: ImageFont.FreeTypeFont, character: str, what: str) -> Image.Image:
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        raise InputError(f"{what}: the font's glyph is empty")
    image = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), character, fill=255, font=font)
    return Image.fromarray(_tight(np.asarray(image)))


def _tight(mask: Mask) -> Mask:
    rows = np.flatnonzero((mask >= INK).any(axis=1))
    columns = np.flatnonzero((mask >= INK).any(axis=0))
    if not rows.size:
        return mask
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
