"""LVIS' fixed AP (Dave et al. 2021, arXiv 2102.01066): no limit an image, the 10,000 best detections of a class over the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.evaluation.matching import IOUS, Matches, class_curves, match
from pipeline.evaluation.metrics import ImageResult

GROUPS = ("rare", "common", "frequent")
RARE, COMMON = 10, 100
"""LVIS v1: names of at most 10 training images are rare, of at most 100 common (arXiv 1908.03195, section 5)."""


def frequency_group(images: int) -> str:
    """The group of a name that stands in so many training images."""
    return "rare" if images <= RARE else "common" if images <= COMMON else "frequent"


def best_of_each_class(results: Sequence[ImageResult], most: int) -> list[ImageResult]:
    """The results with only the ``most`` best detections of each class over the whole set; of equal scores the earlier stay."""
    if not results:
        return []
    labels = np.concatenate([r.labels for r in results])
    scores = np.concatenate([r.scores for r in results])
    order = np.lexsort((np.arange(len(labels)), -scores, labels))
    ordered = labels[order]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    stays = np.zeros(len(labels), bool)
    stays[order[rank < most]] = True
    ends = np.cumsum([len(r.labels) for r in results])
    return [
        replace(r, boxes=r.boxes[m], labels=r.labels[m], scores=r.scores[m])
        for r, m in zip(results, np.split(stays, ends[:-1]), strict=True)
    ]


def fixed_matches(results: Sequence[ImageResult], most: int = 10_000) -> Matches:
    """The set's matches by the rules of fixed AP; the classes are cut before detections of unverified names are dropped."""
    return match(best_of_each_class(results, most), federated=True)


def fixed_ap(matches: Matches, names: Sequence[str], groups: Mapping[str, str] | None = None) -> dict[str, float]:
    """ap, ap50, ap75 in percent, and where ``groups`` has names' frequency groups ap_rare, ap_common, ap_frequent.

    A mean over classes that have gold boxes; a group without any is left out.
    """
    curves = class_curves(matches)
    if not curves:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    of_class = {label: curve.mean(axis=1) for label, curve in curves.items()}
    aps = np.array(list(of_class.values())).reshape(-1, len(IOUS))
    found = {"ap": aps.mean(), "ap50": aps[:, 0].mean(), "ap75": aps[:, 5].mean()}
    for group in GROUPS if groups else ():
        mine = [ap.mean() for label, ap in of_class.items() if groups is not None and groups.get(names[label]) == group]
        if mine:
            found[f"ap_{group}"] = np.mean(mine)
    return {name: 100.0 * float(value) for name, value in found.items()}
