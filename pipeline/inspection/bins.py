"""Bins of the histograms; lower edges are inclusive, upper edges exclusive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Bins:
    """edges: ascending lower edges; the first bin also has the values below it."""

    title: str
    edges: Sequence[float]
    labels: Sequence[str]

    def count(self, values: Sequence[float] | np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """(bins,) int64: number of values in each bin, or the sum of their weights."""
        bins = np.searchsorted(np.asarray(self.edges[1:], np.float64), np.asarray(values, np.float64), side="right")
        return np.bincount(bins, weights, minlength=len(self.labels)).astype(np.int64)


def whole_numbers(title: str, edges: Sequence[int]) -> Bins:
    """Bins of integers; the last one is open."""
    labels = [f"{a}" if a == b - 1 else f"{a:,}–{b - 1:,}" for a, b in pairwise(edges)]
    return Bins(title, edges, (*labels, f"{edges[-1]:,}+"))


def pixels(title: str, edges: Sequence[int]) -> Bins:
    """Bins of lengths, which need not be integers."""
    labels = [f"{a:,} to {b:,}" for a, b in pairwise(edges)]
    return Bins(title, edges, (*labels, f"{edges[-1]:,}+"))


BINS = {
    "boxes_per_image": whole_numbers("boxes of an image", (0, 1, 2, 3, 4, 5, 6, 8, 11, 21, 51)),
    "coco_sizes": Bins("boxes by COCO's sizes", (0, 32**2, 96**2), ("small (< 32²)", "medium (< 96²)", "large")),
    "box_sides": pixels("boxes by the square root of their area, pixels", (0, 8, 16, 32, 64, 96, 192, 384, 768)),
    "box_shares": Bins(
        "boxes by their share of the image",
        (0, 0.001, 0.01, 0.04, 0.1, 0.25, 0.5, 0.9),
        ("< 0.1 %", "0.1 to 1 %", "1 to 4 %", "4 to 10 %", "10 to 25 %", "25 to 50 %", "50 to 90 %", "90 %+"),
    ),
    "scores": Bins(
        "boxes by the teacher's score",
        tuple(i / 20 for i in range(20)),
        tuple(f"{i / 20:.2f} to {(i + 1) / 20:.2f}" for i in range(20)),
    ),
    "phrase_words": whole_numbers("boxes by the words of their phrase", (1, 2, 3, 4, 5, 6, 8, 11)),
    "caption_words": whole_numbers("captions by their words", (0, 1, 3, 6, 11, 16, 21, 31, 51, 101)),
    "shorter_sides": pixels("images by their shorter side, pixels", (0, 64, 128, 224, 256, 384, 512, 640, 800, 1024)),
    "aspects": Bins(
        "images by width over height",
        (0, 0.5, 0.8, 1.25, 2),
        ("under 1:2", "1:2 to 4:5", "near square", "5:4 to 2:1", "2:1 and over"),
    ),
}
"""Histograms that are computed shard by shard."""

FREQUENCIES = whole_numbers("distinct phrases by how many boxes they have", (1, 2, 3, 5, 10, 30, 100, 1000, 10_000))
