"""Matching of labels with gold boxes of the same captions."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filtering.box_matching import match_overlaps, overlaps
from pipeline.filtering.nms import concatenated_ranges, run_lengths
from pipeline.filtering.store import BOX, RegionShard
from pipeline.io.paths import stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import read_table

log = logging.getLogger("glip_self_train")

GOLD_COLUMNS = ("key", "phrase", "novel", "start", "end", *BOX)


@dataclass(frozen=True)
class Gold:
    """Gold boxes of a shard; those of one phrase have the same key and span.

    boxes: (n, 4) absolute xyxy.
    """

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


def comparable(gold: Gold, shard: RegionShard) -> tuple[Gold, np.ndarray, np.ndarray]:
    """(gold, starts, ends of the shard's regions), for :class:`GoldMatcher`.

    Regions of class names have no captions to share characters in: their spans, and those of gold
    boxes whose phrase is a name, become the name's number.
    """
    if shard.names is None:
        return gold, shard.numbers("start"), shard.numbers("end")
    known = pa.array([name.lower() for name in shard.names.names], pa.string())
    if len(gold) and not pc.any(pc.is_in(gold.phrases, value_set=known)).as_py():
        log.warning("%s: found no gold box of its class names; want gold tables whose phrase is the name", shard.path)
    codes, names = shard.texts()
    return by_class(gold, names), codes.astype(np.int64), codes.astype(np.int64) + 1


def by_class(gold: Gold, names: pa.Array) -> Gold:
    """Gold whose spans are [i, i + 1) for the phrase ``names[i]`` (in lower case), empty for other phrases."""
    numbers = pc.index_in(gold.phrases, value_set=names)
    start = pc.fill_null(numbers, len(names)).to_numpy(zero_copy_only=False).astype(np.int64)
    return replace(gold, start=start, end=np.minimum(start + 1, len(names)))


def gold_tables(folder: str | Path) -> dict[str, str]:
    """Shard name -> path of its gold table."""
    return {stem(p): p for p in expand_shards(str(folder), suffix=".parquet")}


class GoldMatcher:
    """One-to-one matching of labels with the gold boxes of their phrases.

    A label's gold phrase is the one of the same caption with the most characters in common, the
    first of equals; a phrase may have several boxes. In order of score each label takes the free
    box of its phrase with the highest IoU, as :func:`match_overlaps`.

    Attributes:
        phrase: (n,) a row of each label's gold phrase, -1 for none.
    """

    def __init__(
        self, gold: Gold, codes: np.ndarray, keys: pa.Array, start: np.ndarray, end: np.ndarray, boxes: np.ndarray,
        score: np.ndarray, iou: float,
    ) -> None:  # fmt: skip
        """Find the phrases of n labels.

        Args:
            codes: (n,) indices of the labels' images in ``keys``.
            start: (n,) start of the labels' spans.
            end: (n,) end of the labels' spans.
            boxes: (n, 4) xyxy.
            score: (n,).
            iou: minimum IoU of a correct label with its gold box.
        """
        order, first, size = _by_image(gold, keys)
        sizes = size[codes]
        label = np.repeat(np.arange(len(codes)), sizes)
        candidate = order[np.repeat(first[codes], sizes) + concatenated_ranges(sizes)]
        shared = np.minimum(end[label], gold.end[candidate]) - np.maximum(start[label], gold.start[candidate])
        self.phrase = np.full(len(codes), -1)
        if len(label):
            starts, lengths = run_lengths(label)
            best = np.repeat(np.maximum.reduceat(shared, starts), lengths)
            pairs = np.flatnonzero((shared == best) & (shared > 0))[::-1]  # reversed: the first of equals is used
            self.phrase[label[pairs]] = candidate[pairs]
        boxes, self._iou = boxes.astype(np.float64), np.array([iou])
        rows = np.flatnonzero(self.phrase >= 0)
        rows = rows[np.lexsort((-score[rows], self.phrase[rows]))]
        firsts, counts = run_lengths(self.phrase[rows])
        same = _rows_of_same_phrase(gold)
        self._groups: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # labels, gold rows, their IoU
        for a, n in zip(firsts, counts, strict=True):
            labels, golds = rows[a : a + n], same[self.phrase[rows[a]]]
            overlap = overlaps(boxes[labels], gold.boxes[golds], np.zeros(len(golds), bool))
            if overlap.max() > 0:
                self._groups.append((labels, golds, overlap))

    def match(self, kept: np.ndarray) -> np.ndarray:
        """(n,) rows of the gold boxes that the ``kept`` labels take, -1 for none: a wrong label."""
        taken = np.full(len(self.phrase), -1)
        for labels, golds, overlap in self._groups:
            there = kept[labels]
            _, _, label = match_overlaps(overlap[there], self._iou, np.zeros(len(golds), bool))
            taken[labels[there][label[label >= 0]]] = golds[label >= 0]
        return taken


def _rows_of_same_phrase(gold: Gold) -> list[np.ndarray]:
    """For each row the rows of the same span in the same caption: the boxes of its phrase."""
    image = gold.keys.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    order = np.lexsort((gold.end, gold.start, image))
    spans = np.stack([image, gold.start, gold.end], 1)[order]
    changes = np.flatnonzero((spans[1:] != spans[:-1]).any(1)) + 1
    rows: list[np.ndarray] = [order] * len(order)
    for group in np.split(order, changes):
        for row in group.tolist():
            rows[row] = group
    return rows


def _by_image(gold: Gold, keys: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(gold rows ordered by image, each key's first position in this order, its number of rows)."""
    image = pc.fill_null(pc.index_in(gold.keys, value_set=keys), -1).to_numpy(zero_copy_only=False)
    order = np.argsort(image, kind="stable")
    size = np.bincount(image[image >= 0], minlength=len(keys))
    return order, int((image < 0).sum()) + np.cumsum(size) - size, size
