"""How good pseudo-labels are, where gold boxes of the crawl exist (the demo's hidden ones, or a hand-labelled sample)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluation.metrics import iou_matrix
from pipeline.io.paths import expand_shards, stem
from pipeline.io.tables import read_table
from pipeline.records import LABELS

BANDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
GOLD_COLUMNS = ("key", "phrase", "novel", "start", "end", "x1", "y1", "x2", "y2")


def label_quality(labels: str | Path, gold: str | Path, iou: float = 0.5) -> dict[str, Any]:
    """Precision and recall of kept labels against gold boxes, in percent, for all phrases and by BASE and NOVEL.

    A label is correct if its phrase overlaps a gold phrase of the same caption (the one it shares most characters
    with) and its box has at least ``iou`` with that phrase's box. A gold phrase is found if some label of it is
    correct. Labels of phrases that name no gold object ("a photo") count against "all" and are told apart.

    Args:
        labels: folder that filter-boxes wrote. gold: folder of Parquet tables of the same shard names with the
            columns GOLD_COLUMNS; ``novel`` says whether the teacher was never taught the noun.

    Returns:
        "all", "base", "novel" -> labels, correct, gold, found, precision, recall; "phrases_not_gold"; "by_score":
        bands of score with labels and correct ones.
    """
    groups = {name: np.zeros(4, np.int64) for name in ("all", "base", "novel")}
    stray = 0
    bands = np.zeros((len(BANDS) - 1, 2), np.int64)
    golds = {stem(p): p for p in expand_shards(str(gold), suffix=".parquet")}
    for path in expand_shards(str(labels), suffix=".parquet"):
        if stem(path) not in golds:
            raise InputError(f"{gold}: no gold table {stem(path)}.parquet for {path}")
        rows = [r for r in read_table(path, LABELS).to_pylist() if r["status"] == "keep"]
        truth = _by_key(_read_gold(golds[stem(path)]))
        for item in (item for items in truth.values() for item in items):
            for name in _groups_of(item):
                groups[name][2] += 1
        found: set[tuple[str, int]] = set()
        for row in rows:
            match = _gold_of(row, truth.get(row["key"], []))
            correct = match is not None and _iou(row, truth[row["key"]][match]) >= iou
            stray += match is None
            if match is not None and correct:
                found.add((row["key"], match))
            for name in ("all",) if match is None else _groups_of(truth[row["key"]][match]):
                groups[name][:2] += (1, correct)
            band = min(int(np.searchsorted(BANDS, row["score"], side="right")) - 1, len(bands) - 1)
            bands[band] += (1, correct)
        for key, index in found:
            for name in _groups_of(truth[key][index]):
                groups[name][3] += 1
    return {
        **{name: _group(*(int(v) for v in counts)) for name, counts in groups.items()},
        "phrases_not_gold": stray,
        "by_score": [
            {"from": BANDS[i], "to": BANDS[i + 1], "labels": int(n), "correct": int(c)}
            for i, (n, c) in enumerate(bands)
        ],
    }


def _groups_of(gold: dict[str, Any]) -> tuple[str, str]:
    return "all", "novel" if gold["novel"] else "base"


def _read_gold(path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    missing = [c for c in GOLD_COLUMNS if c not in table.column_names]
    if missing:
        raise InputError(f"{path}: gold columns missing: {', '.join(missing)}")
    return table.select(list(GOLD_COLUMNS)).to_pylist()


def _by_key(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    keyed: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        keyed.setdefault(row["key"], []).append(row)
    return keyed


def _gold_of(row: dict[str, Any], golds: list[dict[str, Any]]) -> int | None:
    shared = [min(row["end"], g["end"]) - max(row["start"], g["start"]) for g in golds]
    best = int(np.argmax(shared)) if shared else -1
    return best if best >= 0 and shared[best] > 0 else None


def _iou(a: dict[str, Any], b: dict[str, Any]) -> float:
    boxes = [np.array([[r[c] for c in ("x1", "y1", "x2", "y2")]], np.float64) for r in (a, b)]
    return float(iou_matrix(*boxes)[0, 0])


def _group(labels: int, correct: int, gold: int, found: int) -> dict[str, float]:
    return {
        "labels": labels,
        "correct": correct,
        "gold": gold,
        "found": found,
        "precision": round(100 * correct / labels, 2) if labels else 0.0,
        "recall": round(100 * found / gold, 2) if gold else 0.0,
    }
