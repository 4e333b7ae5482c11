"""How good a teacher's labels would be: its detections on gold sets, judged as labels at every threshold.

A label is right if it is the one that finds a gold box of its name at IoU 0.5. It is wrong if it is another, or if its name is
known not to be there. Labels of names of which nothing is known, or that find a crowd, are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.calibration import calibration_error, is_judged, score_bands
from pipeline.evaluation.compare import Evaluated
from pipeline.evaluation.fixed_ap import GROUPS, frequency_group
from pipeline.evaluation.frequencies import plain
from pipeline.evaluation.match_tables import Evidence
from pipeline.evaluation.metrics import SIZES
from pipeline.io.atomic import write_atomic, write_json

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
LEAST = 20
"""Labels that a proposed threshold must rest on."""


@dataclass(frozen=True)
class Judged:
    """Labels that are right or wrong, and the gold they should find. score, right, best (n,): best of its name in its image.

    gold_score (g,): of the label that finds it, -1 if none does. false (f,): the highest score of each name in each image that
    it is known not to be in, where there is any label of it; absent_pairs: how many such pairs were asked for, None if that is not to be told.
    """

    score: np.ndarray
    right: np.ndarray
    best: np.ndarray
    gold_score: np.ndarray
    false: np.ndarray
    absent_pairs: int | None

    def at(self, threshold: float) -> dict[str, float | None]:
        """Labels from this score on: ``labels``, ``precision``, ``recall``, ``best_precision`` (one label a name and image),
        ``false_share`` of the absent names that get a box; percents, None of nothing."""
        kept = self.score >= threshold
        best = kept & self.best
        found: dict[str, float | None] = {
            "threshold": threshold,
            "labels": int(kept.sum()),
            "precision": _share(self.right[kept]),
            "recall": _share(self.gold_score >= threshold),
            "best_labels": int(best.sum()),
            "best_precision": _share(self.right[best]),
        }
        if self.absent_pairs:
            found["false_share"] = 100.0 * float((self.false >= threshold).sum()) / self.absent_pairs
        return found


def _share(flags: np.ndarray) -> float | None:
    return 100.0 * float(flags.mean()) if len(flags) else None


@dataclass(frozen=True)
class Part:
    """A part of a set: its labels ``mine`` (n,) and gold (g,), bool as in ``Evidence.matches``, and its absent pairs."""

    mine: np.ndarray
    gold: np.ndarray
    absent_pairs: int | None


def judge_labels(evidence: Evidence, part: Part | None = None) -> Judged:
    """The set's labels against its gold, or a part's."""
    m = evidence.matches
    if part is None:
        everything = np.ones(len(m.label), bool), np.ones(len(m.gold_label), bool)
        part = Part(*everything, sum(evidence.absent_pairs))
    pair = m.image.astype(np.int64) * (int(m.label.max(initial=0)) + 1) + m.label
    judged = is_judged(m) & part.mine
    score, pair = np.asarray(m.score[judged], np.float64), pair[judged]
    order = np.lexsort((-score, pair))
    ordered = pair[order]
    best = np.zeros(len(score), bool)
    best[order[np.flatnonzero(np.diff(ordered, prepend=-1))]] = True
    absent = m.absent[judged]
    return Judged(
        score, m.hit[judged, 0], best, np.nan_to_num(np.asarray(m.gold_score[part.gold], np.float64), nan=-1.0),
        score[best & absent], part.absent_pairs,
    )  # fmt: skip


def lowest_threshold(score: np.ndarray, right: np.ndarray, wanted: float, least: int = LEAST) -> float | None:
    """The lowest score from which labels reach ``wanted`` percent precision, resting on ``least`` labels or more; else None."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    precision = 100.0 * np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    fits = np.flatnonzero(_last_of_equals(ordered) & (precision >= wanted) & (np.arange(1, len(order) + 1) >= least))
    return float(ordered[fits[-1]]) if len(fits) else None


def best_f1(judged: Judged) -> float | None:
    """The threshold at which the harmonic mean of precision and recall is highest; None without a right label."""
    order = np.argsort(-judged.score, kind="stable")
    if not len(judged.gold_score) or not judged.right.any():
        return None
    # 2 TP / (labels + gold): TP counted on labels, as each right one finds another box
    f1 = 2 * np.cumsum(judged.right[order]) / (np.arange(1, len(order) + 1) + len(judged.gold_score))
    ordered = judged.score[order]
    return float(ordered[int(np.argmax(np.where(_last_of_equals(ordered), f1, -1.0)))])


def _last_of_equals(ordered: np.ndarray) -> np.ndarray:
    """(n,) bool of falling scores: where a threshold may lie, as it takes all labels of one score or none."""
    return np.append(ordered[1:] != ordered[:-1], True) if len(ordered) else np.zeros(0, bool)


def label_quality_of(evidence: Evidence, wanted: Sequence[float]) -> dict[str, Any]:
    """``by_threshold``, ``by_score``, ``calibration_error``, ``proposed`` thresholds, and for each box size and each frequency
    group the same sweep (``by_size``, ``by_frequency``) with its own proposals. A size knows no ``false_share``: what is not there has none."""
    m = evidence.matches
    sizes = {
        name: Part((m.area >= low) & (m.area < high), (m.gold_area >= low) & (m.gold_area < high), None)
        for name, (low, high) in SIZES.items()
    }
    bands = score_bands(m)
    return {
        **_sweep(judge_labels(evidence), wanted),
        "by_score": bands,
        "calibration_error": calibration_error(bands),
        "by_size": {n: _sweep(judge_labels(evidence, part), wanted) for n, part in sizes.items() if part.gold.any()},
        "by_frequency": {
            n: _sweep(judge_labels(evidence, part), wanted) for n, part in _frequency_parts(evidence).items()
        },
        "counts_from": evidence.counts_from,
    }


def _sweep(judged: Judged, wanted: Sequence[float]) -> dict[str, Any]:
    proposed = {f"precision_{want:g}": lowest_threshold(judged.score, judged.right, want) for want in wanted}
    return {
        "gold": len(judged.gold_score),
        "by_threshold": [judged.at(t) for t in THRESHOLDS],
        "proposed": proposed | {"best_f1": best_f1(judged)},
    }


def _frequency_parts(evidence: Evidence) -> dict[str, Part]:
    """Each group's names: rare, common, frequent, as stated or by the counts; a group without gold still has labels that are wrong."""
    m, q = evidence.matches, evidence.queries

    def group(name: str) -> int:
        known = evidence.groups.get(plain(name)) or frequency_group(evidence.counts.get(plain(name), 0))
        return GROUPS.index(known)

    absent_pairs = dict.fromkeys(range(len(GROUPS)), 0)
    if evidence.names:
        of_label = np.array([group(n) for n in evidence.names], np.int64)
        mine, gold = of_label[m.label], of_label[m.gold_label]
        for number, pairs in zip(of_label.tolist(), evidence.absent_pairs, strict=True):
            absent_pairs[number] += pairs
    else:
        most = int(max(m.label.max(initial=0), q.label.max(initial=0))) + 1
        asked = q.image * most + q.label  # rising: queries stand by image and label
        of_query = np.array([group(p) for p in evidence.phrases], np.int64)
        mine, gold = (
            of_query[np.searchsorted(asked, image.astype(np.int64) * most + label)]
            for image, label in ((m.image, m.label), (m.gold_image, m.gold_label))
        )
    parts = {name: Part(mine == i, gold == i, absent_pairs[i]) for i, name in enumerate(GROUPS)}
    return {name: part for name, part in parts.items() if part.gold.any() or part.absent_pairs}


def write_label_qa(folder: str | Path, out: str | Path, wanted: Sequence[float]) -> str:
    """``label_qa.json`` and ``label_qa.md`` in ``out`` from an evaluation folder; returns the page's text.

    Raises:
        InputError: no evaluation in ``folder``.
    """
    read = Evaluated.read(folder)
    found = {name: label_quality_of(read.evidence(name), wanted) for name in read.sets}
    write_json(Path(out) / "label_qa.json", {"model": read.model, "sets": found})
    lines = ["# Labels of this teacher", "", f"Model `{read.model}`. Right: finds a gold box of its name at IoU 0.5."]
    for name, one in found.items():
        lines += ["", f"## {name}", "", *_threshold_table(one["by_threshold"])]
        lines += [
            "",
            f"Expected calibration error: {one['calibration_error']:.1f} points.",
            "",
            "Proposed thresholds:",
            "",
        ]
        parts = {"all": one, **{f"{n} boxes": s for n, s in one["by_size"].items()}}
        parts |= {f"{n} names ({one['counts_from']})": s for n, s in one["by_frequency"].items()}
        lines += _proposal_table(parts)
    text = "\n".join(lines) + "\n"
    write_atomic(Path(out) / "label_qa.md", text)
    return text


def _threshold_table(rows: Sequence[Mapping[str, float | None]]) -> list[str]:
    false = "false_share" in rows[0]
    heads = ["Threshold", "Labels", "Precision", "Recall", "Precision, best per name"]
    heads += ["Absent names boxed"] if false else []
    lines = [f"| {' | '.join(heads)} |", "|---:" * len(heads) + "|"]
    for row in rows[1::2]:  # every tenth; the JSON has them all
        cells = [f"{row['threshold']:.1f}", f"{row['labels']:,.0f}"]
        cells += [_told(row[c], 1) for c in ("precision", "recall", "best_precision")]
        cells += [_told(row["false_share"], 2)] if false else []
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _told(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _rounded_up(threshold: float | None) -> str:
    """To be copied: rounded down, it would let in labels from below."""
    return "none" if threshold is None else f"{min(math.ceil(threshold * 1000 - 1e-9) / 1000, 1.0):.3f}"


def _proposal_table(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    heads = list(next(iter(parts.values()))["proposed"])
    titles = [h.replace("precision_", "precision ").replace("best_f1", "best F1") for h in heads]
    lines = [f"| Labels | Gold | {' | '.join(titles)} |", "|---|---:" + "|---:" * len(heads) + "|"]
    for name, part in parts.items():
        values = [_rounded_up(part["proposed"][h]) for h in heads]
        lines.append(f"| {name} | {part['gold']:,} | {' | '.join(values)} |")
    return lines
