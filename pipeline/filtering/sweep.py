"""Number and quality of the labels at each of a grid of thresholds, in one pass over the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import FilterConfig
from pipeline.errors import InputError
from pipeline.execution.progress import Progress, Silent
from pipeline.filtering.fitted import FilterTables
from pipeline.filtering.gold import Gold, GoldMatcher, comparable, gold_tables, read_gold
from pipeline.filtering.phrases import DistinctTexts, text_hashes
from pipeline.filtering.rules import apply_rules, open_regions, scores, versioned, warn_of_floor
from pipeline.filtering.store import RegionShard
from pipeline.io.files import require_files

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MAX_GRID = 64


def sweep(
    config: FilterConfig,
    regions: Sequence[str],
    grid: Sequence[float] = GRID,
    *,
    gold: str | Path | None = None,
    iou: float = 0.5,
    progress: Progress = Silent(),
) -> dict[str, Any]:
    """Apply the rules with each threshold of a grid. Every column is read once, for all thresholds.

    Args:
        grid: thresholds, at most 64.
        gold: folder of gold tables; precision and recall are measured on images with gold boxes.
        iou: minimum IoU of a correct label with its gold box.

    Returns:
        "regions", "images", "shards": of the store; "gold_boxes"; "rules"; "thresholds": for each
        the kept "images", "boxes" and "phrases" (distinct texts), and with gold "labels" (kept, in
        images with gold), "correct", "found" (gold boxes), "precision" and "recall" in percent.

    Raises:
        InputError: an invalid grid, ``balance_to`` is set, or no shard has gold boxes.
    """
    require_files(regions)
    grid = sorted(set(grid))
    if not grid or len(grid) > MAX_GRID or not 0 <= grid[0] <= grid[-1] <= 1:
        raise InputError(f"grid {', '.join(map(str, grid))}: want 1 to {MAX_GRID} thresholds between 0 and 1")
    if config.balance_to is not None:
        raise InputError(
            "balance_to: phrases are counted for one threshold, so --sweep cannot apply it; sweep without it "
            "(--set balance_to=null), then run count-phrases with the chosen threshold"
        )
    fitted = FilterTables()
    configs = [config.model_copy(update={"threshold": t, "ignore_above": None}) for t in grid]
    warn_of_floor(regions[0], config, grid[0])
    golds = {} if gold is None else gold_tables(gold)
    total = np.zeros((len(grid), 5), np.int64)  # images, boxes, labels, correct, found
    store = np.zeros(3, np.int64)  # regions, images, gold boxes
    texts = DistinctTexts()
    progress.begin("filter-boxes --sweep", len(regions), "shards")
    for path in regions:
        shard = open_regions(path, configs[0], fitted)
        truth = read_gold(golds[shard.name]) if shard.name in golds else None
        total += _of_shard(shard, configs, fitted, texts, truth, iou)
        store += (shard.total, shard.images, 0 if truth is None else len(truth))
        progress.advance(1, "shards")
    if gold is not None and not store[2]:
        raise InputError(f"{gold}: has no gold table with the name of a shard")
    distinct = texts.counts(len(grid))
    return {
        "shards": len(regions),
        "regions": int(store[0]),
        "images": int(store[1]),
        "gold_boxes": int(store[2]) if gold is not None else None,
        "rules": {k: v for k, v in versioned(config).items() if k not in ("threshold", "ignore_above")},
        "thresholds": [
            {"threshold": t, "images": int(row[0]), "boxes": int(row[1]), "phrases": n}
            | ({} if gold is None else _quality(row[2:], int(store[2])))
            for t, row, n in zip(grid, total, distinct, strict=True)
        ],
    }


def _of_shard(
    shard: RegionShard,
    configs: Sequence[FilterConfig],
    fitted: FilterTables,
    distinct: DistinctTexts,
    truth: Gold | None,
    iou: float,
) -> np.ndarray:
    codes, keys = shard.keys()
    text_codes, texts = shard.texts()
    bits = np.zeros(len(texts), np.uint64)
    total = np.zeros((len(configs), 5), np.int64)
    if truth is not None:
        measured = truth.has(keys)[codes]
        truth, start, end = comparable(truth, shard)
        matcher = GoldMatcher(truth, codes, keys, start, end, shard.boxes(), scores(shard, configs[0]), iou)
    for i, config in enumerate(configs):
        kept = apply_rules(shard, config, fitted).keeps
        total[i, :2] = len(np.unique(codes[kept])), kept.sum()
        bits[np.unique(text_codes[kept])] |= np.uint64(1 << i)
        if truth is not None:
            correct = (matcher.match(kept) >= 0).sum()
            total[i, 2:] = (kept & measured).sum(), correct, correct
    kept_texts = np.flatnonzero(bits)
    distinct.add(text_hashes(texts.take(pa.array(kept_texts))), bits[kept_texts])
    return total


def _quality(counted: np.ndarray, gold: int) -> dict[str, Any]:
    labels, correct, found = (int(v) for v in counted)
    return {
        "labels": labels,
        "correct": correct,
        "found": found,
        "precision": round(100 * correct / labels, 2) if labels else None,
        "recall": round(100 * found / gold, 2) if gold else None,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Table of the result for a terminal."""
    rows = result["thresholds"]
    with_gold = result["gold_boxes"] is not None
    head = f"{'threshold':>9}  {'images':>12}  {'boxes':>13}  {'phrases':>11}"
    out = [
        f"{result['shards']:,} shards, {result['images']:,} images, {result['regions']:,} regions",
        head + (f"  {'precision':>9}  {'recall':>7}" if with_gold else ""),
    ]
    for row in rows:
        line = f"{row['threshold']:>9g}  {row['images']:>12,}  {row['boxes']:>13,}  {row['phrases']:>11,}"
        if with_gold:
            precision, recall = ("-" if row[k] is None else f"{row[k]:.1f}" for k in ("precision", "recall"))
            line += f"  {precision:>9}  {recall:>7}"
        out.append(line)
    return out
