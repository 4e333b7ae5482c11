"""Plots of a run's report, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.drawing.figures import figure, svg


def precision_by_score(bands: Sequence[Mapping[str, Any]]) -> bytes:
    """Precision of pseudo-labels and number of labels by the teacher's score; b"" without labels."""
    filled = [b for b in bands if b["labels"]]
    if not filled:
        return b""
    plot, axes = figure(6.4, 3.0)
    centres = [(b["from"] + b["to"]) / 2 for b in filled]
    axes.bar(centres, [b["labels"] for b in filled], width=0.09, color="#c9d4e0")
    axes.set_xlabel("teacher's score")
    axes.set_ylabel("labels", color="#5d6878")
    precision_axes = axes.twinx()
    precision_axes.plot(centres, [100 * b["correct"] / b["labels"] for b in filled], "o-", color="#2b8f78")
    precision_axes.set_ylim(0, 104)
    precision_axes.set_ylabel("correct, %", color="#2b8f78")
    precision_axes.spines["top"].set_visible(False)
    return svg(plot)


def loss_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Training loss against steps, with a line for each model; b"" without any."""
    # a row has no loss if all its steps were skipped
    known = {name: [row for row in rows if "loss" in row] for name, rows in sorted(curves.items())}
    if not any(known.values()):
        return b""
    plot, axes = figure(6.4, 3.0)
    for name, rows in known.items():
        axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], label=name, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return svg(plot)
