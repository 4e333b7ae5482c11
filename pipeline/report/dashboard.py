"""The run's report as Markdown with its plots and pictures inside: Prefect's page shows it without asking anyone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pipeline.report.inside import BOARD, address_of, jpeg_url, svg_url
from pipeline.report.page import comparison_markdown, cost_markdown, quality_markdown
from pipeline.report.plots import loss_curves, precision_by_score
from pipeline.report.run import training_curves
from pipeline.runs.layout import RunLayout


def dashboard_markdown(summary: Mapping[str, Any], layout: RunLayout) -> str:
    """The numbers, the plots, a page of labels, and where more is."""
    parts = [comparison_markdown(summary)]
    labels = layout.report / f"labels-round-{summary['rounds']}.png"
    if labels.is_file():
        parts.append(f"## Pseudo-labels\n\n![pseudo-labels on crawled images]({jpeg_url(labels)})\n")
    if quality := summary.get("pseudo_labels"):
        plot = svg_url(precision_by_score(quality["by_score"]))
        parts.append(
            f"## Are they right?\n\n{quality_markdown(summary)}\n![precision by the teacher's score]({plot})\n"
        )
    if curves := training_curves(layout):
        parts.append(f"## Training loss\n\n![loss]({svg_url(loss_curves(curves))})\n")
    if cost := cost_markdown(summary):
        parts.append(f"## Cost\n\n{cost}")
    parts.append("## More\n\n" + "\n".join(f"- {line}" for line in links(layout)) + "\n")
    return "\n".join(parts)


def links(layout: RunLayout) -> list[str]:
    """Where the pages and curves are: addresses if they are served, paths otherwise."""
    pages = [("the whole report", "index.html")]
    pages += [(p.stem.replace("-", " "), p.name) for p in sorted(layout.report.glob("round-*.html"))]
    pages += [("more labels", p.name) for p in sorted(layout.report.glob("labels-round-*.html"))]
    found = []
    for words, name in pages:
        path = layout.report / name
        address = address_of(path)
        found.append(f"[{words}]({address})" if address else f"{words}: `{path}`")
    board = os.environ.get(BOARD)
    folder = layout.root / "checkpoints"
    found.append(f"[TensorBoard]({board})" if board else f"TensorBoard: `tensorboard --logdir {folder}`")
    return found
