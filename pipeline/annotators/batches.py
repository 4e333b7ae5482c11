"""Batches of queries with similar image shapes and text lengths, to limit padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.annotators.base import Annotator, Prepared, TextQuery
from pipeline.annotators.padded_shapes import PaddedShapes
from pipeline.data.images import ImageError, open_image

BUCKETS_PER_OCTAVE = 6
"""Images whose aspect ratios differ by less than about 12 % may share a batch at little cost."""


@dataclass(frozen=True)
class Item:
    """One query about one image.

    index: of its sample in the shard. data: the image as it is stored, encoded.
    size: (height, width) of the stored image. shape: (height, width) at which the network will see it.
    """

    index: int
    key: str
    data: bytes
    size: tuple[int, int]
    shape: tuple[int, int]
    query: TextQuery


def batches(items: Sequence[Item], size: int, shapes: PaddedShapes | None = None) -> Iterator[list[Item]]:
    """Cut a window of a shard into batches; the same window is always cut the same way.

    Images are ordered by aspect ratio and, of nearly the same one, by text length: rising in one
    bucket, falling in the next, so that a batch across their border holds like texts too.

    shapes: those to which the teacher pads batches; images are ordered by them, and landscape and
    portrait ones are apart.
    """

    def order(item: Item) -> tuple[int, int, int]:
        if shapes is not None:
            return *shapes.order(*item.shape, item.query.tokens), item.index
        height, width = item.shape
        bucket = round(BUCKETS_PER_OCTAVE * math.log2(width / height))
        return bucket, item.query.tokens * (1 if bucket % 2 else -1), item.index

    ordered = sorted(items, key=order)
    for _, group in groupby(ordered, lambda item: shapes is not None and item.shape[0] > item.shape[1]):
        alike = list(group)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def decode(
    annotator: Annotator, items: Sequence[Item], lose: Callable[[Item, ImageError], object], *, scaled: bool = False
) -> tuple[list[Item], list[Prepared]]:
    """Decode and resize a batch's images; broken ones are passed to ``lose`` and left out.

    scaled: decode large JPEGs at a fraction of their size, never below the network's.
    """
    whole: list[Item] = []
    images: list[Prepared] = []
    for item in items:
        try:
            image = open_image(item.data, at_least=item.shape if scaled else None)
            images.append(annotator.prepare(image, item.size))
            whole.append(item)
        except ImageError as error:
            lose(item, error)
    return whole, images
