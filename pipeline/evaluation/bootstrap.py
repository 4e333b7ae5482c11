"""Confidence intervals by the bootstrap over images (Efron 1979), for many resamples at once.

A resample weights every image by the number of times it was drawn, so its AP is AP of weighted
counts. Precision only falls between two true positives, so it is computed at true positives alone.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from pipeline.evaluation.absence import PhrasePresence
from pipeline.evaluation.frequencies import normalise_name
from pipeline.evaluation.match_tables import MatchTables
from pipeline.evaluation.matching import IOUS, RECALLS, Matches, by_class

CHUNK = 1 << 22
"""Largest number of elements of a work array."""

KS = (1, 5, 10)
"""Numbers of best boxes whose recall is measured."""


def draw_weights(images: int, samples: int, seed: int = 0, name: str = "") -> np.ndarray:
    """(samples + 1, images) float64: how often each image is drawn; once in row 0, the set itself.

    The draws of sets with different names are independent.
    """
    drawn = np.random.default_rng([seed, *name.encode()]).multinomial(images, np.full(images, 1 / images), size=samples)
    return np.concatenate([np.ones((1, images)), drawn])


def class_aps(matches: Matches, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AP of every class that has gold in every sample.

    Returns:
        labels (classes,) and AP (classes, samples, 10), 0..1; NaN where a sample has no gold of the
        class.
    """
    classes = by_class(matches)
    aps = np.full((len(classes), len(weights), len(IOUS)), np.nan)
    gold_order = np.argsort(matches.gold_label, kind="stable")
    gold_images = np.split(matches.gold_image[gold_order], np.cumsum([n for *_, n in classes], dtype=np.int64))[:-1]
    by_image = np.ascontiguousarray(weights.T)  # (images, samples): every step below is a sum of rows
    for i, ((_, rows, _), images) in enumerate(zip(classes, gold_images, strict=True)):
        ranked = _RankedClass(matches, rows)
        step = max(1, CHUNK // max(len(ranked.at), 1))
        for start in range(0, len(weights), step):
            samples = by_image[:, start : start + step]
            gold = samples[images].sum(axis=0)
            aps[i, start : start + step] = np.where(gold > 0, ranked.aps(samples, gold), np.nan).T
    return np.array([label for label, *_ in classes], np.int64), aps


class _RankedClass:
    """One class's detections by falling score, counted by image between true positives.

    at (p,): ranks of the detections that are true positives at some IoU.
    """

    def __init__(self, matches: Matches, rows: np.ndarray) -> None:
        tp = matches.tp[rows]
        self.at = np.flatnonzero(tp.any(axis=1))
        self._tp = tp[self.at]
        self._images = matches.image[rows[self.at]]
        rows = rows[: self.at[-1] + 1] if len(self.at) else rows[:0]  # the others do not change AP
        self._segment = np.searchsorted(self.at, np.arange(len(rows)))
        self._all = self._counts(matches.image[rows], self._segment, matches.images)
        ignored = matches.ignored[rows]
        self._ignored = {
            t: self._counts(matches.image[rows[ignored[:, t]]], self._segment[ignored[:, t]], matches.images)
            for t in np.flatnonzero(ignored.any(axis=0))
        }

    def _counts(self, images: np.ndarray, segment: np.ndarray, count: int) -> csr_array:
        """(p, images): detections of each image from one true positive to the next."""
        return csr_array((np.ones(len(images)), (segment, images)), shape=(len(self.at), count))

    def aps(self, by_image: np.ndarray, gold: np.ndarray) -> np.ndarray:
        """(10, samples) AP of (images, samples) weights and (samples,) weighted gold boxes."""
        aps = np.zeros((len(IOUS), by_image.shape[1]))
        seen = np.cumsum(self._all @ by_image, axis=0)
        weights = by_image[self._images]
        for t in np.flatnonzero(self._tp.any(axis=0)):
            counted = seen - np.cumsum(self._ignored[t] @ by_image, axis=0) if t in self._ignored else seen
            at = np.flatnonzero(self._tp[:, t])
            tp = np.cumsum(weights[at], axis=0)
            precision = tp / np.maximum(counted[at], np.spacing(1))
            precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
            reached = _recalls_reached(tp / np.maximum(gold, 1))
            aps[t] = np.einsum("ps,ps->s", np.diff(reached, axis=0, prepend=0), precision) / len(RECALLS)
        return aps


def _recalls_reached(recall: np.ndarray) -> np.ndarray:
    """Number of RECALLS up to each recall in 0..1; as searchsorted(side="right"), but faster."""
    reached: np.ndarray = np.minimum((recall * 100 + 1e-6).astype(np.int64), len(RECALLS) - 1)
    reached += RECALLS[reached] <= recall
    return reached


def resample(tables: MatchTables, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of a set by their names in metrics.json: percents (samples,).

    weights: (samples, images), of :func:`draw_weights`.
    """
    if tables.protocol == "cgf1":
        return PhrasePresence(tables, tables.presence_threshold).metrics(weights)
    if not tables.names:
        stem = "precision_at" if tables.protocol == "refcoco" else "recall_at"
        metrics = {f"{stem}_{k}": _recall(tables, "first", k, weights) for k in KS}
        if tables.protocol == "flickr":
            metrics |= {f"merged_{stem}_{k}": _recall(tables, "first_merged", k, weights) for k in KS}
        return metrics
    labels, aps = class_aps(tables.matches, weights)
    mean_aps = aps.mean(axis=2)
    metrics = {"ap": _mean(mean_aps), "ap50": _mean(aps[:, :, 0]), "ap75": _mean(aps[:, :, 5])}
    if tables.protocol == "detection":
        metrics |= {f"recall_at_{k}": _recall(tables, "first", k, weights) for k in KS}
    if tables.protocol == "lvis":
        groups = np.array([tables.groups.get(normalise_name(tables.names[n])) for n in labels], object)
        metrics |= {f"ap_{group}": _mean(mean_aps[groups == group]) for group in sorted({*tables.groups.values()})}
    return metrics


def _mean(aps: np.ndarray) -> np.ndarray:
    """(classes, samples) AP, NaN for none -> (samples,) mean over the classes in percent."""
    valid = ~np.isnan(aps)
    means: np.ndarray = 100.0 * np.where(valid, aps, 0).sum(axis=0) / np.maximum(valid.sum(axis=0), 1)
    return means


def _recall(tables: MatchTables, first: str, k: int, weights: np.ndarray) -> np.ndarray:
    queries = tables.queries
    matched, total = (
        np.bincount(queries.image, values, minlength=tables.matches.images)
        for values in (getattr(queries, first) < k, np.ones(len(queries.image)))
    )
    recall: np.ndarray = 100.0 * (weights @ matched) / np.maximum(weights @ total, 1)
    return recall


def centred(samples: np.ndarray) -> np.ndarray:
    """The resampled values shifted so that their mean is the set's own value, ``samples[0]``.

    An image drawn twice repeats its true positives in the ranking, which raises interpolated
    precision. Where AP is low, this bias exceeds the spread, and a percentile interval without the
    shift would not contain the set's value.
    """
    shifted: np.ndarray = samples[1:] - samples[1:].mean() + samples[0]
    return shifted


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(values, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)
