"""Layout and rendering of scenes."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from pipeline.demo.config import DemoDataConfig
from pipeline.demo.glyphs import TURN, GlyphBook, Mask

MARGIN = 1
_RESTARTS = 4
_TRIES = 30

Size = Literal["small", "large"]
Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """An object to draw; noun, colour and size as named in captions."""

    noun: str
    colour: str
    size: Size


@dataclass(frozen=True)
class Scene:
    """A rendered scene. pixels: RGB (height, width, 3). boxes: tight, absolute xyxy in pixels."""

    pixels: Pixels
    things: tuple[Thing, ...]
    boxes: tuple[Box, ...]

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    def jpeg(self, quality: int) -> bytes:
        """Encode as JPEG, without metadata and without chroma subsampling."""
        return encode_jpeg(Image.fromarray(self.pixels), quality)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode an RGB or greyscale image as JPEG, deterministically for a version of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=False, progressive=False)
    return buffer.getvalue()


def generator(seed: int, *names: str | int) -> Generator:
    """Random generator that depends only on the seed and the names."""
    numbers = [zlib.crc32(n.encode()) if isinstance(n, str) else n for n in names]
    return np.random.default_rng([seed, *numbers])


class Painter:
    """Renders scenes of one split.

    Args:
        families: the split's fonts, all in ``book``; each thing is drawn with one that has its
            noun.
        colours: name -> RGB.
    """

    def __init__(
        self,
        config: DemoDataConfig,
        book: GlyphBook,
        families: Sequence[str],
        colours: Mapping[str, tuple[int, int, int]],
    ) -> None:
        self._config = config
        self._book = book
        self._families = tuple(families)
        self._colours = {name: np.array(rgb, dtype=np.float32) for name, rgb in colours.items()}
        self._grain = generator(config.seed, "grain").normal(size=(512, 512, 3)).astype(np.float32)

    def paint(self, things: Sequence[Thing], rng: Generator) -> Scene:
        """Draw 1 to 4 things on a random background; no two overlap by more than ``max_overlap``."""
        height, width = self._image_size(rng)
        looks = [self._look(thing, rng) for thing in things]
        masks, corners = self._layout(things, looks, height, width, rng)
        picture = self._background(height, width, rng)
        boxes: list[Box] = []
        for thing, mask, (x, y) in zip(things, masks, corners, strict=True):
            h, w = mask.shape
            ink = (mask.astype(np.float32) / 255)[:, :, None]
            shade = 1 + rng.uniform(-0.1, 0.1) * np.linspace(-1, 1, h, dtype=np.float32)[:, None, None]
            region = picture[y : y + h, x : x + w]
            region += ink * (self._tint(thing.colour, rng) * shade - region)
            boxes.append((float(x), float(y), float(x + w), float(y + h)))
        top, left = rng.integers(0, 512, size=2).tolist()
        picture += rng.uniform(2, 6) * _crop(self._grain, top, left, height, width)
        pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
        return Scene(pixels, tuple(things), tuple(boxes))

    def _image_size(self, rng: Generator) -> tuple[int, int]:
        short = self._config.image_size
        long = round(short * rng.uniform(1, self._config.max_aspect))
        return (short, long) if rng.random() < 0.5 else (long, short)

    def _look(self, thing: Thing, rng: Generator) -> tuple[str, int, int, bool]:
        families = [f for f in self._book.families(thing.noun) if f in self._families]
        family = families[rng.integers(len(families))]
        max_turns = self._config.max_rotation // TURN
        return (
            family,
            int(rng.integers(self._book.drawings(family, thing.noun))),
            int(rng.integers(-max_turns, max_turns + 1)),
            bool(rng.random() < 0.5),
        )

    def _layout(
        self,
        things: Sequence[Thing],
        looks: Sequence[tuple[str, int, int, bool]],
        height: int,
        width: int,
        rng: Generator,
    ) -> tuple[list[Mask], list[tuple[int, int]]]:
        """Masks at their final sizes and the (x, y) of their top left corners."""
        for _ in range(_RESTARTS):
            masks = [self._mask(t, look, rng) for t, look in zip(things, looks, strict=True)]
            corners: list[tuple[int, int]] = []
            for mask in masks:
                corner = self._free_corner(mask, masks, corners, height, width, rng)
                if corner is None:
                    break
                corners.append(corner)
            else:
                return masks, corners
        return masks, _quarters(masks, height, width, rng)

    def _mask(self, thing: Thing, look: tuple[str, int, int, bool], rng: Generator) -> Mask:
        low, high = self._config.small if thing.size == "small" else self._config.large
        side = round(rng.uniform(low, high) * self._config.image_size / 96)
        family, drawing, turns, mirrored = look
        return self._book.mask(family, thing.noun, drawing, side=side, turns=turns, mirrored=mirrored)

    def _free_corner(
        self,
        mask: Mask,
        masks: Sequence[Mask],
        corners: Sequence[tuple[int, int]],
        height: int,
        width: int,
        rng: Generator,
    ) -> tuple[int, int] | None:
        h, w = mask.shape
        xs = rng.integers(MARGIN, width - w - MARGIN + 1, size=_TRIES).tolist()
        ys = rng.integers(MARGIN, height - h - MARGIN + 1, size=_TRIES).tolist()
        for x, y in zip(xs, ys, strict=True):
            for (ox, oy), other in zip(corners, masks, strict=False):
                oh, ow = other.shape
                shared = max(0, min(x + w, ox + ow) - max(x, ox)) * max(0, min(y + h, oy + oh) - max(y, oy))
                if shared > self._config.max_overlap * min(w * h, ow * oh):
                    break
            else:
                return x, y
        return None

    def _tint(self, colour: str, rng: Generator) -> NDArray[np.float32]:
        """RGB of a colour with random variation of brightness, saturation and hue; float32 (3,)."""
        rgb = self._colours[colour]
        grey = rgb.mean()
        varied = grey + (rgb - grey) * rng.uniform(0.85, 1.0) + rng.normal(0, 5, size=3)
        return np.asarray(np.clip(varied * rng.uniform(0.92, 1.05), 0, 255), dtype=np.float32)

    def _background(self, height: int, width: int, rng: Generator) -> NDArray[np.float32]:
        """Muted background: a tinted grey, a gradient and blotches; float32 (height, width, 3)."""
        level = rng.uniform(110, 200)
        corner = level + rng.uniform(-12, 12, size=3)
        opposite = corner + rng.uniform(-28, 28) + rng.uniform(-6, 6, size=3)
        angle = rng.uniform(0, 2 * np.pi)
        across, down = np.linspace(-0.5, 0.5, width)[None, :], np.linspace(-0.5, 0.5, height)[:, None]
        ramp = across * np.cos(angle) + down * np.sin(angle) + 0.5
        coarse = np.clip(rng.normal(128, rng.uniform(10, 60), size=(6, 6)), 0, 255).astype(np.uint8)
        blotches = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        plain = corner + ramp[:, :, None] * (opposite - corner)
        return np.asarray(plain + (blotches.astype(np.float32)[:, :, None] - 128) * 0.25, dtype=np.float32)


def _quarters(masks: Sequence[Mask], height: int, width: int, rng: Generator) -> list[tuple[int, int]]:
    """Corner of each of at most four masks, each in a quarter of its own, which it always fits."""
    corners: list[tuple[int, int]] = []
    for mask, quarter in zip(masks, rng.permutation(4).tolist(), strict=False):
        h, w = mask.shape
        free_x, free_y = max(width // 2 - w - MARGIN, 0), max(height // 2 - h - MARGIN, 0)
        x = int(rng.integers(free_x + 1)) + (width // 2 if quarter % 2 else MARGIN)
        y = int(rng.integers(free_y + 1)) + (height // 2 if quarter >= 2 else MARGIN)
        corners.append((x, y))
    return corners


def _crop(field: NDArray[np.float32], y: int, x: int, height: int, width: int) -> NDArray[np.float32]:
    rows = (y + np.arange(height)) % field.shape[0]
    columns = (x + np.arange(width)) % field.shape[1]
    return np.asarray(field[rows][:, columns])
