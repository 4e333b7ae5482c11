"""Writes ``report.md``: metrics with plots of precision and recall, calibration, and frequency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation import plots
from pipeline.evaluation.calibration import calibration_error, score_bands
from pipeline.evaluation.frequencies import normalise_name
from pipeline.evaluation.match_tables import MatchTables
from pipeline.evaluation.matching import class_curves
from pipeline.io.atomic import write_atomic

FALSE_KINDS = {"attribute": "wrong attribute", "noun": "other noun with the attribute", "other": "other phrase"}
TITLES = {
    "images": "images", "queries": "queries", "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "AP small",
    "ap_medium": "AP medium", "ap_large": "AP large", "ap_rare": "APr", "ap_common": "APc", "ap_frequent": "APf",
    "ar": "AR", "ar_1": "AR@1", "ar_10": "AR@10", "ar_small": "AR small", "ar_medium": "AR medium",
    "ar_large": "AR large",
    **{f"recall_at_{k}": f"R@{k}" for k in (1, 5, 10)},
    **{f"merged_recall_at_{k}": f"R@{k}, merged boxes" for k in (1, 5, 10)},
    **{f"precision_at_{k}": f"P@{k}" for k in (1, 5, 10)},
    "cgf1": "cgF1", "mcc": "MCC, presence of phrases", "pmf1": "pmF1", "presence_threshold": "threshold, x 100",
    "false_boxes": "false boxes for 100 absent phrases",
    **{f"false_boxes_{kind}": f"false boxes, {text}" for kind, text in FALSE_KINDS.items()},
}  # fmt: skip
COUNTS = {"images", "queries", "sets", "presence_threshold"}
EXTREMES = 5
"""Number of best and of worst names that the report lists."""

PROTOCOLS = {
    "detection": "class names; COCO AP, and recall of the best boxes of names present in the image",
    "coco": "COCO", "lvis": "LVIS, fixed AP", "odinw": "ODinW", "flickr": "Flickr30k Entities", "refcoco": "RefCOCO",
    "cgf1": "each image's own phrases, present and absent; cgF1 as SAM 3 defines it",
}  # fmt: skip


def metric_order(name: str) -> int:
    """Sort key of metrics."""
    return list(TITLES).index(name) if name in TITLES else len(TITLES)


def format_metric(name: str, value: float | None) -> str:
    """A metric's value as text."""
    if value is None:
        return "undefined: no ground truth"
    if name == "presence_threshold":
        return f"{value:.1f}"
    return f"{int(value):,}" if name in COUNTS else f"{value:.1f}"


def write_report(out: Path, document: Mapping[str, Any], match_tables: Mapping[str, MatchTables]) -> None:
    """Write ``out/report.md`` and ``out/plots/``; ``document``: the content of metrics.json."""
    lines = ["# Evaluation", "", f"Model `{document['model']}`."]
    for name, mean in document["means"].items():
        lines += ["", f"Mean AP over the {mean['sets']} sets of {PROTOCOLS[name]}: **{mean['ap']:.1f}**."]
    for name, metrics in document["sets"].items():
        tables = match_tables[name]
        lines += ["", f"## {name}", "", f"Protocol: {PROTOCOLS[tables.protocol]}."]
        lines += ["", "| Metric | Value |", "|---|---:|"]
        lines += [f"| {TITLES.get(n, n)} | {format_metric(n, metrics[n])} |" for n in sorted(metrics, key=metric_order)]
        by_name = ("AP", document["classes"][name]) if tables.names else ("R@1", phrase_recalls(tables))
        lines += _plots(out, name, tables, *by_name)
        lines += _extremes(*by_name)
    write_atomic(out / "report.md", "\n".join(lines) + "\n")


def class_aps(tables: MatchTables) -> dict[str, float]:
    """AP in percent of each class name that has ground truth."""
    return {tables.names[n]: 100 * float(c.mean()) for n, c in class_curves(tables.matches).items()}


def phrase_recalls(tables: MatchTables) -> dict[str, float]:
    """Recall at 1 in percent of each phrase of the captions."""
    matched: dict[str, list[bool]] = {}
    for phrase, first, boxes in zip(tables.phrases, tables.queries.first, tables.queries.boxes, strict=True):
        if not boxes:
            continue
        matched.setdefault(normalise_name(phrase), []).append(first < 1)
    return {phrase: 100 * float(np.mean(flags)) for phrase, flags in matched.items()}


def _plots(out: Path, name: str, tables: MatchTables, metric: str, values: Mapping[str, float]) -> list[str]:
    matches = tables.matches
    if not tables.names:  # labels of captions are indices of phrases, not classes: treat them as one class
        matches = replace(matches, label=np.zeros_like(matches.label), gold_label=np.zeros_like(matches.gold_label))
    lines = []

    def add(kind: str, svg: bytes, text: str) -> None:
        file = f"plots/{name}-{kind}.svg"
        write_atomic(out / file, svg)
        lines.extend(["", f"![{text}]({file})"])

    if curves := class_curves(matches):
        add("precision-recall", plots.precision_recall(np.stack(list(curves.values()))), "precision against recall")
    if bands := score_bands(matches):
        add("reliability", plots.reliability(bands), "calibration: precision by score")
        lines += ["", f"Expected calibration error: {calibration_error(bands):.1f} points (score against precision at "
                  "IoU 0.5, in 20 bands)."]  # fmt: skip
    known = {n: v for n, v in values.items() if tables.counts.get(normalise_name(n), 0) > 0}
    if known:
        counts = [tables.counts[normalise_name(n)] for n in known]
        svg = plots.by_frequency(counts, list(known.values()), tables.counts_from, metric)
        add("frequency", svg, f"{metric} by frequency in {tables.counts_from}")
    return lines


def _extremes(metric: str, values: Mapping[str, float]) -> list[str]:
    if len(values) <= 1:
        return []
    ordered = [f"{n} {v:.1f}" for n, v in sorted(values.items(), key=lambda item: (item[1], item[0]))]
    best, worst = ", ".join(ordered[::-1][:EXTREMES]), ", ".join(ordered[:EXTREMES])
    return ["", f"Best names by {metric}: {best}.", "", f"Worst: {worst}."]
