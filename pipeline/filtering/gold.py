"""Matching of labels with gold boxes of the same captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filtering.nms import concatenated_ranges, pair_iou, run_lengths
from pipeline.filtering.store import BOX
from pipeline.io.paths import stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import read_table

GOLD_COLUMNS = ("key", "phrase", "novel", "start", "end", *BOX)


@dataclass(frozen=True)
class Gold:
    """Gold boxes of a shard, one per phrase of a caption. ``boxes``: (n, 4) absolute xyxy."""

    keys: pa.Array
    phrases: pa.Array
    novel: np.ndarray
    start: np.ndarray
    end: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.novel)

    def has(self, keys: pa.Array) -> np.ndarray:
        """(n,) True for keys of images with gold boxes."""
        return np.asarray(pc.is_in(keys, value_set=self.keys))


def read_gold(path: str | Path) -> Gold:
    """Read a gold table (docs/formats.md).

    Raises:
        InputError: no such file, not Parquet, or one of GOLD_COLUMNS is missing.
    """
    table = read_table(path, GOLD_COLUMNS)
    numbers = {
        c: table[c].combine_chunks().to_numpy(zero_copy_only=False) for c in GOLD_COLUMNS if c not in ("key", "phrase")
    }
    return Gold(
        keys=table["key"].cast(pa.string()).combine_chunks(),
        phrases=pc.utf8_lower(table["phrase"].cast(pa.string())).combine_chunks(),
        novel=numbers["novel"].astype(bool),
        start=numbers["start"].astype(np.int64),
        end=numbers["end"].astype(np.int64),
        boxes=np.stack([numbers[c] for c in BOX], 1).astype(np.float64),
    )


def gold_tables(folder: str | Path) -> dict[str, str]:
    """Shard name -> path of its gold table."""
    return {stem(p): p for p in expand_shards(str(folder), suffix=".parquet")}


def match(
    gold: Gold, codes: np.ndarray, keys: pa.Array, start: np.ndarray, end: np.ndarray, boxes: np.ndarray, iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Match labels with gold phrases.

    A label's gold phrase is the one of the same caption with the most characters in common, the
    first of equals. The label is correct if the IoU of the boxes is at least ``iou``.

    Args:
        codes: (n,) indices of the labels' images in ``keys``.
        start, end: (n,) the labels' spans. boxes: (n, 4) xyxy.

    Returns:
        (n,) rows of the gold phrases, -1 for none, and (n,) whether the label is correct.
    """
    order, first, size = _by_image(gold, keys)
    sizes = size[codes]
    label = np.repeat(np.arange(len(codes)), sizes)
    candidate = order[np.repeat(first[codes], sizes) + concatenated_ranges(sizes)]
    shared = np.minimum(end[label], gold.end[candidate]) - np.maximum(start[label], gold.start[candidate])
    matched = np.full(len(codes), -1)
    if len(label):
        starts, lengths = run_lengths(label)
        best = np.repeat(np.maximum.reduceat(shared, starts), lengths)
        pairs = np.flatnonzero((shared == best) & (shared > 0))[::-1]  # reversed, so that the first of equals is used
        matched[label[pairs]] = candidate[pairs]
    rows = np.flatnonzero(matched >= 0)
    correct = np.zeros(len(codes), bool)
    correct[rows] = pair_iou(boxes[rows].astype(np.float64), gold.boxes[matched[rows]]) >= iou
    return matched, correct


def _by_image(gold: Gold, keys: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(gold rows ordered by image, each key's first position in this order, its number of rows)."""
    image = pc.fill_null(pc.index_in(gold.keys, value_set=keys), -1).to_numpy(zero_copy_only=False)
    order = np.argsort(image, kind="stable")
    size = np.bincount(image[image >= 0], minlength=len(keys))
    return order, int((image < 0).sum()) + np.cumsum(size) - size, size
