"""How good pseudo-labels are, where gold boxes of the crawl exist (the demo's hidden ones, or a hand-labelled sample)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.filtering.gold import GOLD_COLUMNS, gold_tables, match, read_gold
from pipeline.filtering.store import RegionShard
from pipeline.io.paths import stem
from pipeline.io.shard_patterns import expand_shards

__all__ = ["BANDS", "GOLD_COLUMNS", "label_quality"]

BANDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def label_quality(labels: str | Path | Sequence[str], gold: str | Path, iou: float = 0.5) -> dict[str, Any]:
    """Precision and recall of kept labels against gold boxes, in percent, for all phrases and by BASE and NOVEL.

    A label is correct if its phrase overlaps a gold phrase of the same caption (the one it shares most characters
    with) and its box has at least ``iou`` with that phrase's box. A gold phrase is found if some label of it is
    correct. Labels of phrases that name no gold object ("a photo") count against "all" and are told apart.

    Args:
        labels: folder that filter-boxes wrote, or files of it. gold: folder of Parquet tables of the same shard names, or of some of
            them, with the columns GOLD_COLUMNS; ``novel`` says whether the teacher was never taught the noun.

    Returns:
        "all", "base", "novel" -> labels, correct, gold, found, precision, recall; "phrases_not_gold"; "by_score":
        bands of score with labels and correct ones.
    """
    groups = {name: np.zeros(4, np.int64) for name in ("all", "base", "novel")}
    stray = 0
    bands = np.zeros((len(BANDS) - 1, 2), np.int64)
    golds = gold_tables(gold)
    paths = expand_shards(str(labels) if isinstance(labels, Path) else labels, suffix=".parquet")
    if not any(stem(path) in golds for path in paths):
        raise InputError(f"{gold}: no gold table of any of the labels' shards, such as {stem(paths[0])}.parquet")
    for path in paths:
        if stem(path) not in golds:
            continue  # a sample of the crawl
        truth = read_gold(golds[stem(path)])
        shard = RegionShard(path)
        shard.restrict(_kept(shard))
        start, end = shard.numbers("start"), shard.numbers("end")
        matched, correct = match(truth, *shard.keys(), start, end, shard.boxes(), iou)
        found = np.zeros(len(truth), bool)
        found[matched[correct]] = True
        stray += int((matched < 0).sum())
        novel = truth.novel[matched] if len(truth) else np.zeros(len(matched), bool)
        for name, mine, its_gold in (
            ("all", np.ones(len(matched), bool), np.ones(len(truth), bool)),
            ("base", (matched >= 0) & ~novel, ~truth.novel),
            ("novel", (matched >= 0) & novel, truth.novel),
        ):
            groups[name] += (mine.sum(), (mine & correct).sum(), its_gold.sum(), (found & its_gold).sum())
        band = (np.searchsorted(BANDS, shard.numbers("score"), side="right") - 1).clip(max=len(bands) - 1)
        bands[:, 0] += np.bincount(band, minlength=len(bands))
        bands[:, 1] += np.bincount(band[correct], minlength=len(bands))
    return {
        **{name: _group(*(int(v) for v in counts)) for name, counts in groups.items()},
        "phrases_not_gold": stray,
        "by_score": [
            {"from": BANDS[i], "to": BANDS[i + 1], "labels": int(n), "correct": int(c)}
            for i, (n, c) in enumerate(bands)
        ],
    }


def _kept(shard: RegionShard) -> np.ndarray:
    status = shard.whole("status")
    keep = status.dictionary.to_pylist().index("keep") if "keep" in status.dictionary.to_pylist() else -1
    return status.indices.to_numpy() == keep


def _group(labels: int, correct: int, gold: int, found: int) -> dict[str, float]:
    return {
        "labels": labels,
        "correct": correct,
        "gold": gold,
        "found": found,
        "precision": round(100 * correct / labels, 2) if labels else 0.0,
        "recall": round(100 * found / gold, 2) if gold else 0.0,
    }
