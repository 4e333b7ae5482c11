"""Mergeable statistics of one shard, and the choice of samples to draw."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from pipeline.inspection.bins import BINS
from pipeline.inspection.samples import Sample

MAX_NOTES = 20
OUTSIDE = 1.0
"""Tolerance in pixels for boxes outside their image, as published boxes are rounded."""


@dataclass(frozen=True)
class Picture:
    """A sample that may be drawn: those of lowest rank. A label store's sample and image are read later."""

    rank: tuple[bool, int]
    shard: str
    key: str
    sample: Sample | None = None
    image: bytes | None = None


class Pictures:
    """Keeps the ``limit`` samples with the lowest ranks: samples with boxes first, then by a hash
    of shard and key.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[Picture] = []  # by rank

    def wants(self, rank: tuple[bool, int]) -> bool:
        """Whether a sample of this rank would be kept."""
        return len(self._kept) < self._limit or (self._limit > 0 and rank < self._kept[-1].rank)

    def add(self, picture: Picture) -> None:
        """Keep a picture if its rank is low enough."""
        if self.wants(picture.rank):
            insort(self._kept, picture, key=lambda kept: kept.rank)
            del self._kept[self._limit :]

    def chosen(self) -> list[Picture]:
        """Kept pictures, sorted by shard and key."""
        return sorted(self._kept, key=lambda p: (p.shard, p.key))


def sample_rank(shard: str, key: str, has_boxes: bool) -> tuple[bool, int]:
    """Rank of a sample, a deterministic function of the arguments."""
    return not has_boxes, int.from_bytes(blake2b(f"{shard}/{key}".encode(), digest_size=8).digest(), "big")


def key_hash(key: str) -> int:
    """64-bit hash of a key, for finding duplicates in whole sets."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


@dataclass
class Counts:
    """Statistics of a shard, or the sum over shards.

    Attributes:
        numbers: name -> count.
        tables: name -> value -> count.
        histograms: name in pipeline.inspection.bins -> counts (bins,).
        problems: reason -> count.
        notes: messages of the first problems.
        phrases: distinct phrase in lower case -> number of boxes.
        extent: (height, width) of the smallest and the largest image, by area.
        keys: hashes of the samples' keys.
    """

    numbers: Counter[str] = field(default_factory=Counter)
    tables: dict[str, Counter[str]] = field(default_factory=dict)
    histograms: dict[str, np.ndarray] = field(
        default_factory=lambda: {name: np.zeros(len(bins.labels), np.int64) for name, bins in BINS.items()}
    )
    problems: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    phrases: Counter[str] = field(default_factory=Counter)
    extent: list[tuple[int, int]] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep the message of a problem, if it is among the first."""
        if len(self.notes) < MAX_NOTES:
            self.notes.append(text)

    def problem(self, reason: str, text: str) -> None:
        """Count a problem."""
        self.problems[reason] += 1
        self.note(text)

    def table(self, name: str, value: str, n: int = 1) -> None:
        """Count a value of a table."""
        self.tables.setdefault(name, Counter())[value] += n

    def bin(self, name: str, values: Sequence[float] | np.ndarray, weights: np.ndarray | None = None) -> None:
        """Count values into a histogram, each once or by its weight."""
        self.histograms[name] += BINS[name].count(values, weights)

    def sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Count images of these sizes (height, width)."""
        if sizes:
            both = np.array(sizes, np.float64)
            self.bin("shorter_sides", both.min(1))
            self.bin("aspects", both[:, 1] / both[:, 0])
            area = both.prod(1)
            self.widen([sizes[int(area.argmin())], sizes[int(area.argmax())]])

    def widen(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Include these sizes in the extent."""
        ordered = sorted([*self.extent, *sizes], key=lambda s: (s[0] * s[1], s))
        self.extent = [ordered[0], ordered[-1]] if ordered else []

    def boxes(self, boxes: np.ndarray, image_sizes: np.ndarray) -> None:
        """Count boxes (n, 4) by their size and their share of the image. image_sizes: (n, 2) of
        (height, width).
        """
        if len(boxes):
            area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            self.bin("coco_sizes", area)
            self.bin("box_sides", np.sqrt(area))
            self.bin("box_shares", area / image_sizes.prod(1))

    def merge(self, other: Counts) -> None:
        """Add the statistics of another shard, except for phrases, keys and pictures."""
        self.numbers.update(other.numbers)
        for name, table in other.tables.items():
            self.tables.setdefault(name, Counter()).update(table)
        for name, counts in other.histograms.items():
            self.histograms[name] += counts
        self.problems.update(other.problems)
        for text in other.notes:
            self.note(text)
        self.widen(other.extent)


def reaches_outside(box: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a box (x1, y1, x2, y2) is partly outside its image of (height, width)."""
    x1, y1, x2, y2 = box
    return x1 < -OUTSIDE or y1 < -OUTSIDE or x2 > size[1] + OUTSIDE or y2 > size[0] + OUTSIDE
