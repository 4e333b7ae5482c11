"""The report's plots, as SVG text that stands inside the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.drawing.figures import figure, svg


def precision_by_score(bands: Sequence[Mapping[str, Any]]) -> str:
    """Precision of pseudo-labels in bands of the teacher's score, with how many labels each band holds."""
    filled = [b for b in bands if b["labels"]]
    if not filled:
        return ""
    made, axes = figure(6.4, 3.0)
    centres = [(b["from"] + b["to"]) / 2 for b in filled]
    axes.bar(centres, [b["labels"] for b in filled], width=0.09, color="#c9d4e0")
    axes.set_xlabel("teacher's score")
    axes.set_ylabel("labels", color="#5d6878")
    right = axes.twinx()
    right.plot(centres, [100 * b["correct"] / b["labels"] for b in filled], "o-", color="#1f6f5c")
    right.set_ylim(0, 104)
    right.set_ylabel("correct, %", color="#1f6f5c")
    right.spines["top"].set_visible(False)
    return _inside(made)


def loss_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Training loss against steps, a line a model."""
    # a row has no loss if every step since the one before was left out
    known = {name: [row for row in rows if "loss" in row] for name, rows in sorted(curves.items())}
    if not any(known.values()):
        return ""
    made, axes = figure(6.4, 3.0)
    for name, rows in known.items():
        axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], label=name, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _inside(made)


def _inside(made: Any) -> str:
    """The figure without what only a file has before it."""
    text = svg(made).decode()
    return text[text.index("<svg") :]
