"""Plots of the evaluation report, as reproducible SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.drawing.figures import figure, svg
from pipeline.evaluation.matching import IOUS, RECALLS

HEIGHT = 3.2
SHOWN = (0, 5, 8)
"""IoU 0.5, 0.75 and 0.9."""


def precision_recall(curves: np.ndarray) -> bytes:
    """Precision against recall, mean over names; curves (names, 10, 101) of class_curves."""
    plot, axes = figure(4.4, HEIGHT)
    for t in SHOWN:
        mean = curves[:, t].mean(axis=0)
        axes.plot(100 * RECALLS, 100 * mean, label=f"IoU {IOUS[t]:.2f}: AP {100 * mean.mean():.1f}", linewidth=1.5)
    axes.set(xlabel="recall, %", ylabel="precision, %", xlim=(0, 100), ylim=(0, 102))
    axes.legend(frameon=False)
    return svg(plot)


def reliability(bands: Sequence[Mapping[str, float]], counted: str = "detections") -> bytes:
    """Precision against score, and the number of detections, called ``counted``, in each band of score."""
    plot, axes = figure(4.4, HEIGHT)
    scores = [b["score"] for b in bands]
    axes.plot([0, 1], [0, 100], color="#b8bec8", linewidth=1, linestyle="--")
    axes.plot(scores, [b["precision"] for b in bands], "o-", color="#1f6f5c")
    axes.set(xlabel="score", ylabel="correct, %", xlim=(0, 1), ylim=(0, 102))
    count_axes = axes.twinx()
    count_axes.bar(
        scores,
        [b["detections"] for b in bands],
        width=0.9 * (bands[0]["to"] - bands[0]["from"]) if bands else 0.045,
        color="#c9d4e0",
        alpha=0.7,
    )
    count_axes.set_yscale("log")
    count_axes.set_ylabel(counted, color="#5d6878")
    count_axes.spines["top"].set_visible(False)
    axes.set_zorder(count_axes.get_zorder() + 1)  # the curve in front of the bars
    axes.patch.set_visible(False)
    return svg(plot)


def by_frequency(counts: Sequence[int], values: Sequence[float], counted: str, measure: str) -> bytes:
    """Scatter plot of names: frequency in ``counted``, ``measure`` in percent; means by decade."""
    plot, axes = figure(5.6, HEIGHT)
    count, value = np.asarray(counts, float), np.asarray(values, float)
    axes.scatter(count, value, s=14, alpha=0.5, color="#3d6fb4", linewidths=0)
    decade = np.floor(np.log10(np.maximum(count, 1)))
    for d in np.unique(decade):
        mean = value[decade == d].mean()
        axes.plot([10**d, 10 ** (d + 1)], [mean, mean], color="#c2542d", linewidth=2)
    axes.set_xscale("log")
    axes.set(xlabel=counted, ylabel=f"{measure}, %", ylim=(0, 102))
    return svg(plot)
