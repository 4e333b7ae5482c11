"""Verdicts joined to the regions of a shard."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filtering.nms import concatenated_ranges, pair_iou, run_lengths
from pipeline.filtering.store import RegionShard

SAME_IOU = 0.9
"""IoU from which a region of the same phrase is the one that a verdict is of: after another labelling with the same
teacher, boxes differ by rounding."""
SPANS = 1 << 40
"""Above the number of any span, or of any class name."""


class JoinedVerdicts:
    """A shard's verdicts and the regions that they are of.

    Attributes:
        verdicts: table of :data:`pipeline.data.verdicts.VERDICTS`, m rows.
        region: (size,) row in ``verdicts`` of the verdict of each region; -1 for none.
        phrase: (size,) row of the verdict of each region's phrase as a whole; -1 for none.
    """

    def __init__(self, shard: RegionShard, verdicts: pa.Table) -> None:
        self.verdicts = verdicts
        self.region, self.phrase = np.full(shard.size, -1), np.full(shard.size, -1)
        if not len(verdicts) or not shard.size:
            return
        rows, group, of = _groups(shard, verdicts)
        whole = pc.is_null(verdicts["box"]).to_numpy()
        verdict_of = np.full(int(of.max(initial=-1)) + 2, -1)  # the last for regions without any
        verdict_of[of[whole]] = np.flatnonzero(whole)
        self.phrase[rows] = verdict_of[group]
        self._match(shard, rows, group, np.flatnonzero(~whole), of)

    def _match(
        self, shard: RegionShard, rows: np.ndarray, group: np.ndarray, verdicts: np.ndarray, of: np.ndarray
    ) -> None:
        """One to one, the highest IoU first."""
        if not len(verdicts):
            return
        order = verdicts[np.argsort(of[verdicts], kind="stable")]
        starts, lengths = run_lengths(of[order])
        first, size = np.zeros(int(of.max()) + 2, np.int64), np.zeros(int(of.max()) + 2, np.int64)
        first[of[order][starts]], size[of[order][starts]] = starts, lengths
        region = np.repeat(rows, size[group])
        verdict = order[np.repeat(first[group], size[group]) + concatenated_ranges(size[group])]
        boxes = self.verdicts["box"].combine_chunks()
        there = np.full((len(self.verdicts), 4), np.nan)
        there[verdicts] = boxes.flatten().to_numpy().reshape(-1, 4)
        overlap = pair_iou(shard.boxes()[region], there[verdict])
        taken = np.zeros(len(self.verdicts), bool)
        for i in np.argsort(-overlap, kind="stable"):
            if overlap[i] < SAME_IOU:
                break
            if self.region[region[i]] < 0 and not taken[verdict[i]]:
                self.region[region[i]], taken[verdict[i]] = verdict[i], True

    def decisions(self, of: np.ndarray) -> np.ndarray:
        """(n,) object: the decision of each verdict row in ``of``; "" for -1."""
        names = np.array([*self.verdicts["verdict"].to_pylist(), ""], object)
        return np.asarray(names[of])

    def missing(self) -> np.ndarray:
        """(k, 4) xyxy of the boxes that the teacher overlooked."""
        rows = self.verdicts.filter(pc.equal(self.verdicts["verdict"], "missing"))["boxes"].combine_chunks()
        return np.asarray(rows.flatten().flatten()).reshape(-1, 4)

    def judge(self, shard: RegionShard, min_iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """Judge regions by their own verdict, or by a reject of their phrase.

        A fixed region is correct if it has at least ``min_iou`` with its right box.

        Returns:
            (size,) True for judged regions, and (size,) True for correct ones.
        """
        decision = self.decisions(self.region)
        correct = decision == "accept"
        if len(fixed := np.flatnonzero(decision == "fixed")):
            new = np.array([self.verdicts["boxes"][int(i)].as_py()[0] for i in self.region[fixed]])
            correct[fixed] = pair_iou(shard.boxes()[fixed], new) >= min_iou
        absent = (self.region < 0) & (self.decisions(self.phrase) == "reject")
        judged = absent | np.isin(decision, ("accept", "reject", "fixed"))
        return judged, correct


def _groups(shard: RegionShard, verdicts: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(regions in images with verdicts (r,), number of the phrase of each, -1 without verdict; and of each verdict).

    A phrase is a span of an image's caption, or a class name of an image.
    """
    codes, keys = shard.keys()
    key_of = verdicts["key"].combine_chunks()
    key = _index(keys, key_of)[codes]
    rows = np.flatnonzero(key >= 0)
    if shard.names is None:
        found, wanted = (
            _span_number(*(number(name) for name in ("start", "end")))
            for number in (lambda name: shard.numbers(name)[rows], lambda name: pc.fill_null(verdicts[name], -1))
        )
    else:
        text, names = shard.texts()
        found, wanted = text[rows].astype(np.int64), _index(pc.utf8_lower(verdicts["phrase"]), names)
    unique, of = np.unique(_index(key_of, key_of) * SPANS + wanted, return_inverse=True)
    phrase = key[rows] * SPANS + found
    group = np.searchsorted(unique, phrase)
    group[unique[np.minimum(group, len(unique) - 1)] != phrase] = -1
    return rows, group, of


def _index(values: pa.Array, of: pa.Array) -> np.ndarray:
    """(n,) int64 first position of each value among ``of``; -1 for none."""
    return np.asarray(pc.fill_null(pc.index_in(values, value_set=of), -1).to_numpy(zero_copy_only=False), np.int64)


def _span_number(start: Any, end: Any) -> np.ndarray:
    """(n,) int64, one for each span."""
    return np.asarray(start, np.int64) * (1 << 20) + np.asarray(end, np.int64)
