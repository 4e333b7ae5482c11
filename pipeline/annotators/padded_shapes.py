"""A few padded shapes for all batches of a teacher, so that a network is compiled for each only once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

STRIDE = 32
"""Sides are multiples of it."""
ASPECTS = {32: (4 / 3, 3 / 2, 16 / 9, 2), 96: (4 / 3, 3 / 2, 16 / 9, 2), 160: (4 / 3, 2)}
"""Text lengths in tokens -> longer over shorter sides, beside the square and the longest, that have shapes."""
TOKENS_OF_PIXELS = 200
"""Tokens that cost as much as the image alone: GLIP-T's FLOPs at 800x1344, as ``benchmarks/gpu.py`` counts them."""


@dataclass(frozen=True)
class PaddedShapes:
    """The (height, width, tokens) to which batches may be padded, at most 32."""

    shapes: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, shortest: int, longest: int, limit: int) -> PaddedShapes:
        """Shapes for images resized to a shorter side ``shortest`` and a longer of at most ``longest``.

        limit: tokens of the longest text. The longer the texts, and the rarer, the fewer the shapes.
        """
        short, long = _rounded(min(shortest, longest)), _rounded(longest)
        aspects = {tokens: own for tokens, own in ASPECTS.items() if tokens < limit}
        shapes = set()
        for tokens, own in {**aspects, limit: () if aspects else ASPECTS[32]}.items():
            wide = {(short, short), (short, long)}
            for aspect in own:
                across = _rounded(short * aspect)
                wide.add((short, across) if across < long else (min(short, _rounded(longest / aspect)), long))
            shapes |= {(*side, tokens) for h, w in wide for side in ((h, w), (w, h))}
        return cls(tuple(sorted(shapes)))

    def holding(self, height: int, width: int, tokens: int) -> tuple[int, int, int] | None:
        """The cheapest shape that holds images of this size with texts of this length.

        None: there is none, as for a batch with images of both orientations, and one very long image.
        """
        return _holding(self.shapes, height, width, tokens)

    def order(self, height: int, width: int, tokens: int) -> tuple[int, int]:
        """Sort key of an image and its text: neighbours cost little more together than apart.

        Landscape and portrait images do not mix; texts rise in one shape and fall in the next.
        """
        h, w, _ = self.holding(height, width, tokens) or (height, width, tokens)
        place = round(12 * math.log2(w / h))
        return place, tokens * (1 if place % 2 else -1)


def _rounded(pixels: float) -> int:
    return math.ceil(round(pixels, 6) / STRIDE) * STRIDE


@lru_cache(maxsize=4096)
def _holding(
    shapes: tuple[tuple[int, int, int], ...], height: int, width: int, tokens: int
) -> tuple[int, int, int] | None:
    fit = [(h, w, t) for h, w, t in shapes if h >= height and w >= width and t >= tokens]
    return min(fit, key=lambda s: s[0] * s[1] * (TOKENS_OF_PIXELS + s[2]), default=None)
