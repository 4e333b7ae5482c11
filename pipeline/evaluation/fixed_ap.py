"""Fixed AP of LVIS (Dave et al. 2021, arXiv 2102.01066).

Detections are not limited by image, but to the 10,000 best of each class over the set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.evaluation.matching import Matches, class_curves, rank_in_class
from pipeline.evaluation.metrics import ImageResult

GROUPS = ("rare", "common", "frequent")
RARE, COMMON = 10, 100
"""LVIS v1: rare classes have up to 10 training images, common up to 100 (arXiv 1908.03195, 5)."""


def frequency_group(images: int) -> str:
    """The frequency group of a name that occurs in ``images`` training images."""
    return "rare" if images <= RARE else "common" if images <= COMMON else "frequent"


def best_of_each_class(results: Sequence[ImageResult], most: int) -> list[ImageResult]:
    """The results with the ``most`` best detections of each class over the set; ties in order."""
    if not results:
        return []
    labels = np.concatenate([r.labels for r in results])
    scores = np.concatenate([r.scores for r in results])
    order = np.argsort(-scores, kind="stable")
    keep = np.zeros(len(labels), bool)
    keep[order[rank_in_class(labels[order]) < most]] = True
    ends = np.cumsum([len(r.labels) for r in results])
    return [
        replace(r, boxes=r.boxes[m], labels=r.labels[m], scores=r.scores[m])
        for r, m in zip(results, np.split(keep, ends[:-1]), strict=True)
    ]


def fixed_ap(
    matches: Matches, names: Sequence[str], groups: Mapping[str, str] | None = None
) -> dict[str, float | None]:
    """ap, ap50, ap75 in percent; with frequency ``groups`` also ap_rare, ap_common, ap_frequent.

    Means over classes with gold boxes, None without any; groups without such classes are omitted. ``matches``: of
    :func:`best_of_each_class`, by federated rules.
    """
    by_label = {label: curve.mean(axis=1) for label, curve in class_curves(matches).items()}
    if not by_label:
        return dict.fromkeys(("ap", "ap50", "ap75"))
    aps = np.array(list(by_label.values()))
    metrics = {"ap": aps.mean(), "ap50": aps[:, 0].mean(), "ap75": aps[:, 5].mean()}
    for group in GROUPS:
        in_group = [ap.mean() for label, ap in by_label.items() if groups and groups.get(names[label]) == group]
        if in_group:
            metrics[f"ap_{group}"] = np.mean(in_group)
    return {name: 100.0 * float(value) for name, value in metrics.items()}
