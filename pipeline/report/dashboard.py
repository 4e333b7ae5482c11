"""The run's report as self-contained Markdown with embedded images, for Prefect's page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pipeline.report.page import comparison_markdown, cost_markdown, quality_markdown
from pipeline.report.plots import loss_curves, precision_by_score
from pipeline.report.run import training_curves
from pipeline.report.urls import BOARD, data_url, link, thumbnail_url
from pipeline.runs.layout import RunLayout

SVG = "image/svg+xml"


def dashboard_markdown(summary: Mapping[str, Any], layout: RunLayout) -> str:
    """Metrics, plots, pseudo-labels, costs, and links to the pages."""
    parts = [comparison_markdown(summary)]
    labels = layout.report / f"labels-round-{summary['rounds']}.png"
    if labels.is_file():
        parts.append(f"## Pseudo-labels\n\n![pseudo-labels on crawled images]({thumbnail_url(labels)})\n")
    if quality := summary.get("pseudo_labels"):
        plot = data_url(precision_by_score(quality["by_score"]), SVG)
        table = quality_markdown(quality, "chance" in summary)
        parts.append(f"## Label quality\n\n{table}\n![precision by the teacher's score]({plot})\n")
    if curves := training_curves(layout):
        parts.append(f"## Training loss\n\n![loss]({data_url(loss_curves(curves), SVG)})\n")
    if cost := cost_markdown(summary):
        parts.append(f"## Cost\n\n{cost}")
    parts.append("## Pages\n\n" + "\n".join(f"- {line}" for line in links(layout)) + "\n")
    return "\n".join(parts)


def links(layout: RunLayout) -> list[str]:
    """Markdown links to the report's pages and TensorBoard if they are served, else their paths."""
    pages = [("full report", "index.html")]
    pages += [(p.stem.replace("-", " "), p.name) for p in sorted(layout.report.glob("round-*.html"))]
    pages += [("more labels", p.name) for p in sorted(layout.report.glob("labels-round-*.html"))]
    lines = [link(text, layout.report / name) for text, name in pages]
    board, folder = os.environ.get(BOARD), layout.root / "checkpoints"
    lines.append(f"[TensorBoard]({board})" if board else f"TensorBoard: `tensorboard --logdir {folder}`")
    return lines
