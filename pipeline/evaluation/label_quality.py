"""Precision and recall of pseudo-labels against gold boxes of the crawl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.filtering.gold import GoldMatcher, comparable, gold_tables, read_gold
from pipeline.filtering.store import RegionShard
from pipeline.io.paths import stem
from pipeline.io.shard_patterns import expand_shards

BANDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def label_quality(labels: str | Path | Sequence[str], gold: str | Path, iou: float = 0.5) -> dict[str, Any]:
    """Precision and recall of kept labels in percent, for all, BASE and NOVEL phrases.

    A label's gold phrase is the one of the same caption that it shares most characters with. It is
    correct if it is matched one to one with a gold box of that phrase at ``iou``; such a box is
    found. Labels whose phrase overlaps none ("a photo") are wrong in "all", and also counted in
    "phrases_not_gold".

    Args:
        labels: folder that filter-boxes wrote, or files of it.
        gold: folder of Parquet tables with the columns of :mod:`pipeline.filtering.gold`, named as
            all or some of the label files; ``novel``: the noun is not in the teacher's training data.

    Returns:
        "all", "base", "novel" -> labels, correct, gold, found, precision, recall (None of none);
        "phrases_not_gold"; "by_score": labels and correct ones in bands of score.

    Raises:
        InputError: no gold table for any of the labels' shards.
    """
    groups = {name: np.zeros(4, np.int64) for name in ("all", "base", "novel")}
    not_gold = 0
    bands = np.zeros((len(BANDS) - 1, 2), np.int64)
    golds = gold_tables(gold)
    paths = expand_shards(str(labels) if isinstance(labels, Path) else labels, suffix=".parquet")
    if not any(stem(path) in golds for path in paths):
        raise InputError(f"{gold}: no gold table of any of the labels' shards, such as {stem(paths[0])}.parquet")
    for path in paths:
        if stem(path) not in golds:
            continue  # gold of a sample of the crawl
        truth = read_gold(golds[stem(path)])
        shard = RegionShard(path)
        shard.restrict(pc.equal(shard.whole("status"), "keep").to_numpy(zero_copy_only=False))
        truth, start, end = comparable(truth, shard)
        matcher = GoldMatcher(truth, *shard.keys(), start, end, shard.boxes(), shard.numbers("score"), iou)
        phrase, taken = matcher.phrase, matcher.match(np.ones(len(start), bool))
        correct = taken >= 0
        recalled = np.zeros(len(truth), bool)
        recalled[taken[correct]] = True
        not_gold += int((phrase < 0).sum())
        novel = truth.novel[phrase] if len(truth) else np.zeros(len(phrase), bool)
        for name, in_group, gold_in_group in (
            ("all", np.ones(len(phrase), bool), np.ones(len(truth), bool)),
            ("base", (phrase >= 0) & ~novel, ~truth.novel),
            ("novel", (phrase >= 0) & novel, truth.novel),
        ):
            groups[name] += (
                in_group.sum(), (in_group & correct).sum(), gold_in_group.sum(), (recalled & gold_in_group).sum()
            )  # fmt: skip
        band = (np.searchsorted(BANDS, shard.numbers("score"), side="right") - 1).clip(max=len(bands) - 1)
        bands[:, 0] += np.bincount(band, minlength=len(bands))
        bands[:, 1] += np.bincount(band[correct], minlength=len(bands))
    return {
        **{name: _group(*counts.tolist()) for name, counts in groups.items()},
        "phrases_not_gold": not_gold,
        "by_score": [
            {"from": BANDS[i], "to": BANDS[i + 1], "labels": int(n), "correct": int(c)}
            for i, (n, c) in enumerate(bands)
        ],
    }


def _group(labels: int, correct: int, gold: int, found: int) -> dict[str, float | None]:
    return {
        "labels": labels, "correct": correct, "gold": gold, "found": found,
        "precision": round(100 * correct / labels, 2) if labels else None,
        "recall": round(100 * found / gold, 2) if gold else None,
    }  # fmt: skip
