"""The evaluation report's plots, as SVG files that are the same bytes every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.drawing.figures import figure, svg
from pipeline.evaluation.matching import IOUS, RECALLS

HEIGHT = 3.2
SHOWN = (0, 5, 8)
"""IoU 0.5, 0.75 and 0.9."""


def precision_recall(curves: np.ndarray) -> bytes:
    """Precision against recall, a mean over names; curves (names, 10, 101) as matching.class_curves gives them."""
    made, axes = figure(4.4, HEIGHT)
    for t in SHOWN:
        mean = curves[:, t].mean(axis=0)
        axes.plot(100 * RECALLS, 100 * mean, label=f"IoU {IOUS[t]:.2f}: AP {100 * mean.mean():.1f}", linewidth=1.5)
    axes.set(xlabel="recall, %", ylabel="precision, %", xlim=(0, 100), ylim=(0, 102))
    axes.legend(frameon=False)
    return svg(made)


def reliability(bands: Sequence[Mapping[str, float]]) -> bytes:
    """Share of right detections against their score, with how many there are."""
    made, axes = figure(4.4, HEIGHT)
    scores = [b["score"] for b in bands]
    axes.plot([0, 1], [0, 100], color="#b8bec8", linewidth=1, linestyle="--")
    axes.plot(scores, [b["precision"] for b in bands], "o-", color="#1f6f5c")
    axes.set(xlabel="score", ylabel="right, %", xlim=(0, 1), ylim=(0, 102))
    right = axes.twinx()
    right.bar(scores, [b["detections"] for b in bands], width=0.045, color="#c9d4e0", alpha=0.7)
    right.set_yscale("log")
    right.set_ylabel("detections", color="#5d6878")
    right.spines["top"].set_visible(False)
    axes.set_zorder(right.get_zorder() + 1)  # the curve before the bars
    axes.patch.set_visible(False)
    return svg(made)


def by_frequency(counts: Sequence[int], values: Sequence[float], counted: str, measure: str) -> bytes:
    """A dot a name: how often it stands in ``counted``, and its ``measure`` in percent; with the mean of each power of ten."""
    made, axes = figure(5.6, HEIGHT)
    at, value = np.asarray(counts, float), np.asarray(values, float)
    axes.scatter(at, value, s=14, alpha=0.5, color="#3d6fb4", linewidths=0)
    decade = np.floor(np.log10(np.maximum(at, 1)))
    for d in np.unique(decade):
        mean = value[decade == d].mean()
        axes.plot([10**d, 10 ** (d + 1)], [mean, mean], color="#c2542d", linewidth=2)
    axes.set_xscale("log")
    axes.set(xlabel=counted, ylabel=f"{measure}, %", ylim=(0, 102))
    return svg(made)
