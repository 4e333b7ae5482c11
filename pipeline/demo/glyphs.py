"""Glyphs of icon fonts as masks of ink: rendered once, then mirrored, turned and resized for every use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.demo.manifest import FontEntry
from pipeline.errors import InputError

MASTER = 96
"""Longer side of a master mask, in pixels."""
INK = 64
"""A pixel belongs to a glyph's box if its mask is at least this, of 255."""
TURN = 3
"""Rotations come in steps of so many degrees, so that turned masks can be kept."""

Mask = NDArray[np.uint8]


class GlyphBook:
    """Masks of every noun in the given font families.

    Raises:
        InputError: a font is not installed, is another version, or draws nothing for one of its glyphs.
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
        """The families that draw ``noun``, in the order given."""
        return tuple(family for family, name in self._masters if name == noun)

    def drawings(self, family: str, noun: str) -> int:
        """How many drawings of ``noun`` a family has."""
        return len(self._masters[family, noun])

    def mask(self, family: str, noun: str, drawing: int, *, side: int, turns: int, mirrored: bool) -> Mask:
        """The glyph's ink, (height, width) uint8, tight: its longer side is ``side`` pixels or one less.

        ``turns`` counts steps of ``TURN`` degrees, counter-clockwise. Every edge row and column holds a
        pixel of at least ``INK``.
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
        raise InputError(f"{what}: the font draws nothing for it")
    image = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), character, fill=255, font=font)
    return Image.fromarray(_tight(np.asarray(image)))


def _tight(mask: Mask) -> Mask:
    rows = np.flatnonzero((mask >= INK).any(axis=1))
    columns = np.flatnonzero((mask >= INK).any(axis=0))
    if not rows.size:
        return mask
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
