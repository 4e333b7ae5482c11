"""HTML page of an evaluation: metrics, curves, a table by class, worst misses and false boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.drawing.figures import inline_svg
from pipeline.evaluation.compare import Evaluated
from pipeline.evaluation.report import COUNTS, PROTOCOLS, TITLES, format_metric, metric_order, phrase_recalls
from pipeline.inspection.evaluation_store import EvaluationStore, class_rows
from pipeline.io.atomic import write_atomic
from pipeline.report.figures import store_figures
from pipeline.report.templates import render

PICTURES = 12
"""Number of images with misses, and of those with false boxes, of a set."""
PLOTS = {
    "precision-recall": "precision against recall",
    "reliability": "precision by score",
    "frequency": "by frequency of the names",
}
PHRASES = 500
"""Number of phrases, the worst first, in the table of a set of captions."""
WORST = {"missed": "Worst misses", "wrong": "False boxes of highest score"}


def write_evaluation_page(
    folder: str | Path,
    out: str | Path,
    *,
    title: str,
    made: dict[str, str],
    shards: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write the page of a folder that evaluate wrote.

    Args:
        out: file. made: its footer (:mod:`pipeline.report.provenance`).
        shards: set -> its shards; default: where they were evaluated.

    Raises:
        InputError: no evaluation in ``folder``, or a set's shards are missing or others.
    """
    evaluated = Evaluated.read(folder)
    sets = [_set(evaluated, name, (shards or {}).get(name, ())) for name in evaluated.sets]
    write_atomic(out, render("evaluation.html", title=title, model=evaluated.model, sets=sets, made=made))


def _set(evaluated: Evaluated, name: str, shards: Sequence[str]) -> dict[str, Any]:
    store, metrics = EvaluationStore(evaluated.folder, name, shards), evaluated.sets[name]
    shown = sorted((metric for metric in metrics if metric not in COUNTS), key=metric_order)
    files = {text: evaluated.folder / "plots" / f"{name}-{kind}.svg" for kind, text in PLOTS.items()}
    return {
        "name": name,
        "protocol": PROTOCOLS[evaluated.protocols[name]],
        "least": store.least,
        "headline": [{"title": f"{name} {TITLES.get(m, m)}", "value": metrics[m], "over": {}} for m in shown[:1]],
        "metrics": [(TITLES.get(m, m), format_metric(m, metrics[m])) for m in sorted(metrics, key=metric_order)],
        "plots": {text: Markup(inline_svg(file.read_bytes())) for text, file in files.items() if file.is_file()},
        **_by_name(evaluated, store, name),
        "worst": [(WORST[kind], kind, store_figures(store, places)) for kind, places in store.worst(PICTURES).items()],
    }


def _by_name(evaluated: Evaluated, store: EvaluationStore, name: str) -> dict[str, Any]:
    """Rows by class name, or by phrase, and their number."""
    if store.tables.names:
        aps = evaluated.classes.get(name, {})
        classes = [row | {"ap": aps.get(row["name"])} for row in class_rows(store)]
        return {"classes": classes, "phrases": [], "phrases_total": 0}
    recalls = sorted(phrase_recalls(store.tables).items(), key=lambda row: (row[1], row[0]))
    return {"classes": [], "phrases": recalls[:PHRASES], "phrases_total": len(recalls)}
