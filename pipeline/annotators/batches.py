"""Which questions go through the teacher together: those of like image shape and text length, so that little is padding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.annotators.base import TextQuery

BUCKETS_PER_OCTAVE = 6
"""Images whose aspect ratios differ by less than about 12 % may share a batch at little cost."""


@dataclass(frozen=True)
class Item:
    """One question about one image. place: of its sample in the shard. data: the image as it is stored, encoded.

    size: (height, width) of the stored image; shape: at which the network will see it.
    """

    place: int
    key: str
    data: bytes
    size: tuple[int, int]
    shape: tuple[int, int]
    question: TextQuery


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Cut a window of a shard into batches; the same window is always cut the same way.

    Images are ordered by aspect ratio and, of nearly the same one, by text length: up in one bucket, down in the next,
    so that a batch across their border holds like texts too.
    """

    def bucket(item: Item) -> int:
        height, width = item.shape
        return round(BUCKETS_PER_OCTAVE * math.log2(width / height))

    def order(item: Item) -> tuple[int, int, int]:
        at = bucket(item)
        return at, item.question.tokens * (1 if at % 2 else -1), item.place

    ordered = sorted(items, key=order)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
