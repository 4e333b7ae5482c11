"""Confidence intervals by the bootstrap over images (Efron 1979): metrics of many resampled sets at once.

A resample gives every image a weight, the number of times it was drawn, so AP of a resample is AP with weighted counts.
Between two right detections precision only falls, so it is looked at where a detection is right, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from pipeline.evaluation.evidence import Evidence
from pipeline.evaluation.frequencies import plain
from pipeline.evaluation.matching import IOUS, RECALLS, Matches, by_class

CHUNK = 1 << 24
"""Numbers in one array of the work at most."""

Estimate = Callable[[np.ndarray], np.ndarray]
"""Weights (samples, images) -> a metric of each sample (samples,), in percent."""


def draw_weights(images: int, samples: int, seed: int = 0, name: str = "") -> np.ndarray:
    """(samples + 1, images) float64: how often each image is drawn. The first row is the set itself, every image once.

    Sets of other names are drawn independently.
    """
    drawn = np.random.default_rng([seed, *name.encode()]).multinomial(images, np.full(images, 1 / images), size=samples)
    return np.concatenate([np.ones((1, images)), drawn])


def class_aps(matches: Matches, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AP of every class that has gold in every sample.

    Returns:
        labels (classes,) and AP (classes, samples, 10), 0..1; NaN where a sample has no gold of the class.
    """
    classes = by_class(matches)
    found = np.full((len(classes), len(weights), len(IOUS)), np.nan)
    gold_order = np.argsort(matches.gold_label, kind="stable")
    gold_images = np.split(matches.gold_image[gold_order], np.cumsum([n for *_, n in classes], dtype=np.int64))[:-1]
    for i, ((_, rows, _), images) in enumerate(zip(classes, gold_images, strict=True)):
        step = max(1, CHUNK // max(len(rows), 1))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            gold = weights[part][:, images].sum(axis=1)
            found[i, part] = np.where(gold[:, None] > 0, _weighted_ap(matches, rows, weights[part], gold), np.nan)
    return np.array([label for label, *_ in classes], np.int64), found


def _weighted_ap(matches: Matches, rows: np.ndarray, weights: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """(samples, 10) of one class; rows: its detections by falling score; gold (samples,): its weighted boxes."""
    aps = np.zeros((len(weights), len(IOUS)))
    hits = matches.hit[rows]
    if not hits[:, 0].any():
        return aps
    rows = rows[: int(np.flatnonzero(hits[:, 0])[-1]) + 1]  # after the last right one there is nothing to gain
    hits, ignored = hits[: len(rows)], matches.ignored[rows]
    mine = weights[:, matches.image[rows]]
    seen = np.cumsum(mine, axis=1)
    for t in range(len(IOUS)):
        at = np.flatnonzero(hits[:, t])
        if not len(at):
            continue
        skipped = np.flatnonzero(ignored[:, t])
        counted = seen[:, at]
        if len(skipped):
            sums = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(mine[:, skipped], axis=1)], axis=1)
            counted = counted - sums[:, np.searchsorted(skipped, at)]
        right = np.cumsum(mine[:, at], axis=1)
        precision = right / np.maximum(counted, np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, right / np.maximum(gold, 1)[:, None], side="right")
        aps[:, t] = (np.diff(reached, axis=1, prepend=0) * best).sum(axis=1) / len(RECALLS)
    return aps


def estimates(evidence: Evidence) -> dict[str, Estimate]:
    """The metrics of a set that can be resampled, by the names that metrics.json has for them."""
    found: dict[str, Estimate] = {}
    if not evidence.names:
        stem = "precision_at" if evidence.protocol == "refcoco" else "recall_at"
        for k in (1, 5, 10):
            found[f"{stem}_{k}"] = partial(_recall, evidence, "first", k)
            if evidence.protocol == "flickr":
                found[f"merged_{stem}_{k}"] = partial(_recall, evidence, "first_merged", k)
        return found
    aps = _Averages(evidence)
    found = {"ap": aps.mean, "ap50": partial(aps.mean, iou=0), "ap75": partial(aps.mean, iou=5)}
    if evidence.protocol == "detection":
        found |= {f"recall_at_{k}": partial(_recall, evidence, "first", k) for k in (1, 5, 10)}
    if evidence.protocol == "lvis":
        found |= {f"ap_{group}": partial(aps.mean, group=group) for group in sorted({*evidence.groups.values()})}
    return found


class _Averages:
    """Mean AP over classes; the classes' own are computed once for the same weights."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._last: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def mean(self, weights: np.ndarray, iou: int | None = None, group: str | None = None) -> np.ndarray:
        if self._last is None or self._last[0] is not weights:
            self._last = (weights, *class_aps(self._evidence.matches, weights))
        _, labels, aps = self._last
        if group is not None:
            names, groups = self._evidence.names, self._evidence.groups
            aps = aps[[groups.get(plain(names[n])) == group for n in labels]]
        values = aps.mean(axis=2) if iou is None else aps[:, :, iou]
        there = ~np.isnan(values)
        return 100.0 * np.where(there, values, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)


def _recall(evidence: Evidence, first: str, k: int, weights: np.ndarray) -> np.ndarray:
    queries = evidence.queries
    found, asked = (
        np.bincount(queries.image, values, minlength=evidence.matches.images)
        for values in (getattr(queries, first) < k, np.ones(len(queries.image)))
    )
    return 100.0 * (weights @ found) / np.maximum(weights @ asked, 1)


def interval(values: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
