"""Confidence intervals by the bootstrap over images (Efron 1979): metrics of many resampled sets at once.

A resample gives every image a weight, the number of times it was drawn, so AP of a resample is AP with weighted counts.
Between two right detections precision only falls, so it is looked at where a detection is right, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.sparse import csr_array

from pipeline.evaluation.frequencies import plain
from pipeline.evaluation.match_tables import Evidence
from pipeline.evaluation.matching import IOUS, RECALLS, Matches, by_class

CHUNK = 1 << 22
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
    by_image = np.ascontiguousarray(weights.T)  # samples side by side: every step below is a sum of rows
    for i, ((_, rows, _), images) in enumerate(zip(classes, gold_images, strict=True)):
        ranked = _Ranked(matches, rows)
        step = max(1, CHUNK // max(len(ranked.at), 1))
        for start in range(0, len(weights), step):
            part = by_image[:, start : start + step]
            gold = part[images].sum(axis=0)
            found[i, start : start + step] = np.where(gold > 0, ranked.aps(part, gold), np.nan).T
    return np.array([label for label, *_ in classes], np.int64), found


class _Ranked:
    """One class' detections by falling score, as what lies up to each that is right at some IoU. at (p,): where those are."""

    def __init__(self, matches: Matches, rows: np.ndarray) -> None:
        hits = matches.hit[rows]
        self.at = np.flatnonzero(hits.any(axis=1))
        self._hits = hits[self.at]
        self._images = matches.image[rows[self.at]]
        rows = (
            rows[: self.at[-1] + 1] if len(self.at) else rows[:0]
        )  # after the last right one there is nothing to gain
        self._part = np.searchsorted(self.at, np.arange(len(rows)))
        self._all = self._counts(matches.image[rows], self._part, matches.images)
        ignored = matches.ignored[rows]
        self._skipped = {
            t: self._counts(matches.image[rows[ignored[:, t]]], self._part[ignored[:, t]], matches.images)
            for t in np.flatnonzero(ignored.any(axis=0))
        }

    def _counts(self, images: np.ndarray, part: np.ndarray, count: int) -> csr_array:
        return csr_array((np.ones(len(images)), (part, images)), shape=(len(self.at), count))

    def aps(self, by_image: np.ndarray, gold: np.ndarray) -> np.ndarray:
        """(10, samples). by_image: (images, samples) weights. gold: (samples,) weighted boxes."""
        aps = np.zeros((len(IOUS), by_image.shape[1]))
        seen = np.cumsum(self._all @ by_image, axis=0)
        mine = by_image[self._images]
        for t in np.flatnonzero(self._hits.any(axis=0)):
            counted = seen - np.cumsum(self._skipped[t] @ by_image, axis=0) if t in self._skipped else seen
            at = np.flatnonzero(self._hits[:, t])
            right = np.cumsum(mine[at], axis=0)
            best = right / np.maximum(counted[at], np.spacing(1))
            best = np.maximum.accumulate(best[::-1], axis=0)[::-1]
            reached = _recalls_reached(right / np.maximum(gold, 1))
            aps[t] = np.einsum("ps,ps->s", np.diff(reached, axis=0, prepend=0), best) / len(RECALLS)
        return aps


def _recalls_reached(recall: np.ndarray) -> np.ndarray:
    """How many of RECALLS are at most each recall, 0..1; as searchsorted from the right, only faster."""
    reached = np.minimum((recall * 100 + 1e-6).astype(np.int64), len(RECALLS) - 1)
    return reached + (RECALLS[reached] <= recall)


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


def centred(drawn: np.ndarray) -> np.ndarray:
    """The resamples' values, moved so that their mean is the set's own value, ``drawn[0]``.

    Images that are drawn twice repeat their right detections in a row, which lifts interpolated precision: resampled AP lies above
    the set's by more than its spread where AP is low, and a plain percentile interval would not hold the value it is for.
    """
    return drawn[1:] - drawn[1:].mean() + drawn[0]


def interval(values: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
