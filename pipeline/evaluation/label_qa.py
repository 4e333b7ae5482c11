"""Quality of a teacher's detections as labels at every score threshold, on sets with gold boxes or with verdicts.

With gold, a label is correct if it is matched to a gold box of its name at IoU 0.5, and wrong if its name is
present or known to be absent and it is not. Other labels, and those matched to crowds, are not
judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.verdicts import Verdicts
from pipeline.errors import InputError
from pipeline.evaluation.calibration import bands_of, calibration_error, is_judged, score_bands
from pipeline.evaluation.compare import Evaluated
from pipeline.evaluation.fixed_ap import GROUPS, frequency_group
from pipeline.evaluation.frequencies import normalise_name
from pipeline.evaluation.match_tables import MatchTables
from pipeline.evaluation.metrics import SIZES
from pipeline.filtering.nms import over_limit
from pipeline.filtering.store import RegionShard
from pipeline.filtering.verdicts import JoinedVerdicts
from pipeline.io.atomic import write_atomic, write_json
from pipeline.io.paths import stem
from pipeline.io.shard_patterns import expand_shards

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
MIN_LABELS = 20
"""Labels that a proposed threshold must keep."""


@dataclass(frozen=True)
class JudgedLabels:
    """The n judged labels and the g gold boxes of a set or subset.

    score, correct (n,); best (n,): the best of its name in its image. gold_score (g,): of the
    matched label, -1 if none. false (f,): the highest score of each absent name in each image that
    has a label of it. absent_pairs: number of (image, absent name) pairs; None if undefined.
    """

    score: np.ndarray
    correct: np.ndarray
    best: np.ndarray
    gold_score: np.ndarray
    false: np.ndarray
    absent_pairs: int | None

    def at(self, threshold: float) -> dict[str, float | None]:
        """Metrics of the labels with at least this score, in percent; None where undefined.

        ``best_precision``: of the best label of each name in each image. ``false_share``: of absent
        names, the share that gets a label.
        """
        kept = self.score >= threshold
        best = kept & self.best
        metrics: dict[str, float | None] = {
            "threshold": threshold,
            "labels": int(kept.sum()),
            "precision": _share(self.correct[kept]),
            "recall": _share(self.gold_score >= threshold),
            "best_labels": int(best.sum()),
            "best_precision": _share(self.correct[best]),
        }
        if self.absent_pairs:
            metrics["false_share"] = 100.0 * float((self.false >= threshold).sum()) / self.absent_pairs
        return metrics


def _share(flags: np.ndarray) -> float | None:
    return 100.0 * float(flags.mean()) if len(flags) else None


@dataclass(frozen=True)
class Subset:
    """Masks of a set's detections (n,) and gold (g,), and the number of its absent pairs."""

    detections: np.ndarray
    gold: np.ndarray
    absent_pairs: int | None


def judge_labels(tables: MatchTables, subset: Subset | None = None) -> JudgedLabels:
    """Judge the labels of a set, or of a subset."""
    m = tables.matches
    if subset is None:
        subset = Subset(np.ones(len(m.label), bool), np.ones(len(m.gold_label), bool), sum(tables.absent_pairs))
    pair = m.image.astype(np.int64) * (int(m.label.max(initial=0)) + 1) + m.label
    judged = is_judged(m) & subset.detections
    score, pair = np.asarray(m.score[judged], np.float64), pair[judged]
    order = np.lexsort((-score, pair))
    ordered = pair[order]
    best = np.zeros(len(score), bool)
    best[order[np.flatnonzero(np.diff(ordered, prepend=-1))]] = True
    absent = m.absent[judged]
    return JudgedLabels(
        score, m.tp[judged, 0], best, np.nan_to_num(np.asarray(m.gold_score[subset.gold], np.float64), nan=-1.0),
        score[best & absent], subset.absent_pairs,
    )  # fmt: skip


def lowest_threshold(
    score: np.ndarray, correct: np.ndarray, precision: float, min_labels: int = MIN_LABELS
) -> float | None:
    """The lowest threshold with this precision in percent and ``min_labels``; else None."""
    order = np.argsort(-score, kind="stable")
    ordered, kept = score[order], np.arange(1, len(order) + 1)
    reached = 100.0 * np.cumsum(correct[order]) / kept >= precision
    valid = np.flatnonzero(_last_of_equals(ordered) & reached & (kept >= min_labels))
    return float(ordered[valid[-1]]) if len(valid) else None


def best_f1(judged: JudgedLabels) -> float | None:
    """The score threshold with the highest F1; None without a correct label."""
    order = np.argsort(-judged.score, kind="stable")
    if not len(judged.gold_score) or not judged.correct.any():
        return None
    # 2 TP / (labels + gold), where TP may be counted on labels, as each is matched to its own gold box
    f1 = 2 * np.cumsum(judged.correct[order]) / (np.arange(1, len(order) + 1) + len(judged.gold_score))
    ordered = judged.score[order]
    return float(ordered[int(np.argmax(np.where(_last_of_equals(ordered), f1, -1.0)))])


def _last_of_equals(ordered: np.ndarray) -> np.ndarray:
    """(n,) bool, last of equal scores: a threshold keeps all of them or none."""
    return np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, bool)


def label_quality_of(tables: MatchTables, precisions: Sequence[float]) -> dict[str, Any]:
    """Label quality of a set by threshold, and thresholds proposed for each of ``precisions``.

    Returns:
        ``by_threshold``, ``proposed``; ``by_score``, ``calibration_error``; the first two also in
        ``by_size`` of boxes, without ``false_share``, as absent objects have no size; and in
        ``by_frequency`` of names.
    """
    m = tables.matches
    sizes = {
        name: Subset((m.area >= low) & (m.area < high), (m.gold_area >= low) & (m.gold_area < high), None)
        for name, (low, high) in SIZES.items()
    }
    bands = score_bands(m)
    return {
        **_sweep(judge_labels(tables), precisions),
        "by_score": bands,
        "calibration_error": calibration_error(bands),
        "by_size": {n: _sweep(judge_labels(tables, s), precisions) for n, s in sizes.items() if s.gold.any()},
        "by_frequency": {n: _sweep(judge_labels(tables, s), precisions) for n, s in _frequency_subsets(tables).items()},
        "counts_from": tables.counts_from,
    }


def _sweep(judged: JudgedLabels, precisions: Sequence[float]) -> dict[str, Any]:
    proposed = {f"precision_{p:g}": lowest_threshold(judged.score, judged.correct, p) for p in precisions}
    return {
        "gold": len(judged.gold_score),
        "by_threshold": [judged.at(t) for t in THRESHOLDS],
        "proposed": proposed | {"best_f1": best_f1(judged)},
    }


def _frequency_subsets(tables: MatchTables) -> dict[str, Subset]:
    """Subsets of rare, common and frequent names; one without gold may still have wrong labels."""
    m, q = tables.matches, tables.queries

    def group(name: str) -> int:
        name = normalise_name(name)
        return GROUPS.index(tables.groups.get(name) or frequency_group(tables.counts.get(name, 0)))

    absent_pairs = dict.fromkeys(range(len(GROUPS)), 0)
    if tables.names:
        of_label = np.array([group(n) for n in tables.names], np.int64)
        detections, gold = of_label[m.label], of_label[m.gold_label]
        for number, pairs in zip(of_label.tolist(), tables.absent_pairs, strict=True):
            absent_pairs[number] += pairs
    else:
        labels = int(max(m.label.max(initial=0), q.label.max(initial=0))) + 1
        pairs_of_queries = q.image * labels + q.label  # ascending, as queries are in order of image and label
        of_query = np.array([group(p) for p in tables.phrases], np.int64)
        detections, gold = (
            of_query[np.searchsorted(pairs_of_queries, image.astype(np.int64) * labels + label)]
            for image, label in ((m.image, m.label), (m.gold_image, m.gold_label))
        )
    subsets = {name: Subset(detections == i, gold == i, absent_pairs[i]) for i, name in enumerate(GROUPS)}
    return {name: subset for name, subset in subsets.items() if subset.gold.any() or subset.absent_pairs}


def verdict_quality_of(regions: Sequence[str], verdicts: Verdicts, precisions: Sequence[float]) -> dict[str, Any]:
    """Label quality of stored regions by the verdicts on them, as :func:`label_quality_of`.

    Gold boxes are the correct regions and the ones that were missing. The verdicts should be of a
    random sample (``review --order random``): those of uncertain regions only are worse than the rest.

    Raises:
        InputError: an input is missing, or no region has a verdict.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    missing: list[np.ndarray] = []
    for path in regions:
        shard = RegionShard(path)
        joined = JoinedVerdicts(shard, verdicts.of(shard.name))
        judged, correct = joined.judge(shard)
        rows = np.flatnonzero(judged & ~np.isnan(shard.numbers("score")))
        score, phrase, boxes = shard.numbers("score")[rows], shard.phrase_ids()[rows], shard.boxes()[rows]
        best = ~over_limit(score, phrase, 1)
        parts.append((score.astype(np.float64), correct[rows], best, _area(boxes)))
        missing.append(_area(joined.missing()))
    score, correct, best, area = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if not len(score):
        raise InputError(f"found no region with a verdict among {len(verdicts)} verdicts; want some on these regions")
    gold_area = np.concatenate([area[correct], *missing])
    gold_score = np.concatenate([score[correct], np.full(len(gold_area) - int(correct.sum()), -1.0)])

    def sweep(low: float, high: float) -> dict[str, Any]:
        of, of_gold = ((a >= low) & (a < high) for a in (area, gold_area))
        judged = JudgedLabels(score[of], correct[of], best[of], gold_score[of_gold], np.zeros(0), None)
        return _sweep(judged, precisions)

    bands = bands_of(score, correct)
    by_size = {name: sweep(low, high) for name, (low, high) in SIZES.items()}
    return {
        **sweep(0, math.inf), "by_score": bands, "calibration_error": calibration_error(bands),
        "by_size": {name: of_size for name, of_size in by_size.items() if of_size["gold"]},
    }  # fmt: skip


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def write_label_qa(folder: str | Path, out: str | Path, precisions: Sequence[float]) -> str:
    """Write ``label_qa.json`` and ``label_qa.md`` of an evaluation folder; returns the latter.

    Raises:
        InputError: no evaluation in ``folder``.
    """
    evaluated = Evaluated.read(folder)
    sets = {name: label_quality_of(evaluated.match_tables(name), precisions) for name in evaluated.sets}
    return _write(out, evaluated.model, sets, "Correct labels match a gold box at IoU 0.5.")


def write_verdict_qa(regions: str, verdicts: str | Path, out: str | Path, precisions: Sequence[float]) -> str:
    """Write ``label_qa.json`` and ``label_qa.md`` of stored regions with verdicts; returns the latter.

    Raises:
        InputError: as :func:`verdict_quality_of`.
    """
    paths, decided = expand_shards(regions, suffix=".parquet"), Verdicts.read(verdicts)
    decided.warn_of_unknown_shards(map(stem, paths))
    quality = {"verdicts": verdict_quality_of(paths, decided, precisions)}
    words = (
        "Correct labels were accepted, or have an IoU of 0.5 with their mended box. Labels without a verdict do not "
        "count."
    )
    return _write(out, RegionShard(paths[0]).footer.get("teacher", ""), quality, words)


def _write(out: str | Path, model: str, sets: Mapping[str, Mapping[str, Any]], words: str) -> str:
    write_json(Path(out) / "label_qa.json", {"model": model, "sets": sets})
    lines = ["# Label quality", "", f"Model `{model}`. {words}"]
    for name, one in sets.items():
        lines += ["", f"## {name}", "", *_threshold_table(one["by_threshold"])]
        lines += ["", f"Expected calibration error: {one['calibration_error']:.1f} points."]
        subsets = {"all": one, **{f"{n} boxes": s for n, s in one["by_size"].items()}}
        subsets |= {f"{n} names ({one['counts_from']})": s for n, s in one.get("by_frequency", {}).items()}
        lines += ["", "Proposed thresholds:", "", *_proposal_table(subsets)]
    text = "\n".join(lines) + "\n"
    write_atomic(Path(out) / "label_qa.md", text)
    return text


def _threshold_table(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    absent = "false_share" in rows[0]
    heads = ["Threshold", "Labels", "Precision", "Recall", "Precision, best per name"]
    heads += ["Absent names boxed"] if absent else []
    lines = [f"| {' | '.join(heads)} |", "|---:" * len(heads) + "|"]
    for row in rows[1::2]:  # multiples of 0.1; the JSON file has them all
        cells = [f"{row['threshold']:.1f}", f"{row['labels']:,.0f}"]
        cells += [_format(row[c], 1) for c in ("precision", "recall", "best_precision")]
        cells += [_format(row["false_share"], 2)] if absent else []
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _format(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _round_up(threshold: float | None) -> str:
    """The threshold rounded up: rounded down, it would keep labels below it."""
    return "none" if threshold is None else f"{min(math.ceil(threshold * 1000 - 1e-9) / 1000, 1.0):.3f}"


def _proposal_table(subsets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    heads = list(next(iter(subsets.values()))["proposed"])
    titles = [h.replace("precision_", "precision ").replace("best_f1", "best F1") for h in heads]
    lines = [f"| Labels | Gold | {' | '.join(titles)} |", "|---|---:" + "|---:" * len(heads) + "|"]
    for name, subset in subsets.items():
        values = [_round_up(subset["proposed"][h]) for h in heads]
        lines.append(f"| {name} | {subset['gold']:,} | {' | '.join(values)} |")
    return lines
