"""The report's plots, as SVG text that stands inside the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any


def precision_by_score(bands: Sequence[Mapping[str, Any]]) -> str:
    """Precision of pseudo-labels in bands of the teacher's score, with how many labels each band holds."""
    filled = [b for b in bands if b["labels"]]
    if not filled:
        return ""
    figure, axes = _figure()
    centres = [(b["from"] + b["to"]) / 2 for b in filled]
    axes.bar(centres, [b["labels"] for b in filled], width=0.09, color="#c9d4e0")
    axes.set_xlabel("teacher's score")
    axes.set_ylabel("labels", color="#5d6878")
    right = axes.twinx()
    right.plot(centres, [100 * b["correct"] / b["labels"] for b in filled], "o-", color="#1f6f5c")
    right.set_ylim(0, 104)
    right.set_ylabel("correct, %", color="#1f6f5c")
    right.spines["top"].set_visible(False)
    return _svg(figure)


def loss_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Training loss against steps, a line a model."""
    # a row has no loss if every step since the one before was left out
    known = {name: [row for row in rows if "loss" in row] for name, rows in sorted(curves.items())}
    if not any(known.values()):
        return ""
    figure, axes = _figure()
    for name, rows in known.items():
        axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], label=name, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _svg(figure)


def _figure() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.0), layout="constrained")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import pyplot, rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "glip-self-train"}):  # ids are random otherwise
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
