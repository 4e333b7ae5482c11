"""``report.md``: an evaluation for people, with plots of precision and recall, of calibration, and by phrase frequency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation import plots
from pipeline.evaluation.calibration import calibration_error, score_bands
from pipeline.evaluation.frequencies import plain
from pipeline.evaluation.match_tables import Evidence
from pipeline.evaluation.matching import class_curves
from pipeline.io.atomic import write_atomic

TITLES = {
    "images": "images", "queries": "names asked", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small",
    "ap_medium": "AP medium", "ap_large": "AP large", "ap_rare": "APr", "ap_common": "APc", "ap_frequent": "APf",
    "ar": "AR", "ar_1": "AR@1", "ar_10": "AR@10", "ar_small": "AR small", "ar_medium": "AR medium", "ar_large": "AR large",
    **{f"recall_at_{k}": f"R@{k}" for k in (1, 5, 10)},
    **{f"merged_recall_at_{k}": f"R@{k}, merged boxes" for k in (1, 5, 10)},
    **{f"precision_at_{k}": f"P@{k}" for k in (1, 5, 10)},
}  # fmt: skip
COUNTS = {"images", "queries", "sets"}
PROTOCOLS = {
    "detection": "class names; COCO AP, and recall of the best boxes of names that are there",
    "coco": "COCO", "lvis": "LVIS, fixed AP", "odinw": "ODinW", "flickr": "Flickr30k Entities", "refcoco": "RefCOCO",
}  # fmt: skip


def place(name: str) -> int:
    """Where a metric stands among others."""
    return list(TITLES).index(name) if name in TITLES else len(TITLES)


def cell(name: str, value: float) -> str:
    """A metric as text."""
    return f"{int(value):,}" if name in COUNTS else f"{value:.1f}"


def metric_table(metrics: Mapping[str, float]) -> list[str]:
    """Metrics as a table in Markdown."""
    names = sorted(metrics, key=place)
    return ["| Metric | Value |", "|---|---:|", *(f"| {TITLES.get(n, n)} | {cell(n, metrics[n])} |" for n in names)]


def write_report(out: Path, document: Mapping[str, Any], evidence: Mapping[str, Evidence]) -> None:
    """``out/report.md`` and ``out/plots/``."""
    lines = ["# Evaluation", "", f"Model `{document['model']}`."]
    for name, mean in document["means"].items():
        lines += ["", f"Mean AP over the {mean['sets']} sets of {PROTOCOLS[name]}: **{mean['ap']:.1f}**."]
    for name, metrics in document["sets"].items():
        one = evidence[name]
        lines += ["", f"## {name}", "", f"Protocol: {PROTOCOLS[one.protocol]}.", "", *metric_table(metrics)]
        lines += _pictures(out, name, one)
        lines += _extremes(one)
    write_atomic(out / "report.md", "\n".join(lines) + "\n")


def name_values(one: Evidence) -> tuple[str, dict[str, float]]:
    """(what is measured, name -> percent): AP of class names, recall at 1 of captions' phrases."""
    if one.names:
        return "AP", {one.names[n]: 100 * float(c.mean()) for n, c in class_curves(one.matches).items()}
    hits: dict[str, list[bool]] = {}
    for phrase, first in zip(one.phrases, one.queries.first, strict=True):
        hits.setdefault(plain(phrase), []).append(first < 1)
    return "R@1", {phrase: 100 * float(np.mean(h)) for phrase, h in hits.items()}


def _pictures(out: Path, name: str, one: Evidence) -> list[str]:
    matches = one.matches
    if not one.names:  # a caption's phrases are no classes: all of them are one
        matches = replace(matches, label=np.zeros_like(matches.label), gold_label=np.zeros_like(matches.gold_label))
    lines = []

    def picture(kind: str, svg: bytes, text: str) -> None:
        file = f"plots/{name}-{kind}.svg"
        write_atomic(out / file, svg)
        lines.extend(["", f"![{text}]({file})"])

    if curves := class_curves(matches):
        picture("precision-recall", plots.precision_recall(np.stack(list(curves.values()))), "precision against recall")
    if bands := score_bands(matches):
        picture("reliability", plots.reliability(bands), "calibration: right detections by score")
        lines += ["", f"Expected calibration error: {calibration_error(bands):.1f} points (score against share of right "
                  "detections at IoU 0.5, in 20 bands)."]  # fmt: skip
    measure, values = name_values(one)
    known = {n: v for n, v in values.items() if one.counts.get(plain(n), 0) > 0}
    if known:
        counts = [one.counts[plain(n)] for n in known]
        svg = plots.by_frequency(counts, list(known.values()), one.counts_from, measure)
        picture("frequency", svg, f"{measure} by frequency in {one.counts_from}")
    return lines


def _extremes(one: Evidence, most: int = 5) -> list[str]:
    measure, values = name_values(one)
    if len(values) <= 1:
        return []
    ordered = sorted(values.items(), key=lambda item: (item[1], item[0]))
    worst, best = ordered[:most], ordered[::-1][:most]

    def told(items: list[tuple[str, float]]) -> str:
        return ", ".join(f"{n} {v:.1f}" for n, v in items)

    return ["", f"Best names by {measure}: {told(best)}.", "", f"Worst: {told(worst)}."]
