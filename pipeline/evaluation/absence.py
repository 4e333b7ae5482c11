"""Metrics of phrases that are present or absent in an image: cgF1 and its parts, and false boxes by kind.

Definitions of SAM 3 (Segment Anything with Concepts, 2025, section on metrics), for boxes: a phrase is
predicted to be present if its best detection has at least a threshold. MCC is Matthews' correlation
of that with the truth over all (image, phrase) pairs; pmF1 is the micro F1 of the detections above the
threshold over the pairs that are present, averaged over IoU 0.5 to 0.95; cgF1 is their product. SAM 3
has the threshold 0.5; here it is chosen by MCC on a part of the images, which is then left out, as the
scores of other detectors are not made for 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.match_tables import MatchTables

CHOICE_SHARE = 0.5
"""Share of the images on which the threshold is chosen."""
KINDS = ("attribute", "noun", "other")
"""Kinds of absent phrases: another attribute of a thing that is there ("green umbrella" beside a red one); another
noun with the attribute of a thing that is there ("red kite" beside a red umbrella); neither."""


class PhrasePresence:
    """The p (image, phrase) pairs of a set, and the detections of each.

    Attributes:
        threshold: score from which a phrase counts as present.
    """

    def __init__(self, tables: MatchTables, threshold: float | None = None) -> None:
        """threshold: None: the one with the highest MCC on a part of the images."""
        m, q = tables.matches, tables.queries
        labels = int(max(m.label.max(initial=0), q.label.max(initial=0))) + 1
        self._image, self._boxes, self._matches = q.image, q.boxes, m
        self._kind = np.array(_kinds(tables), np.int64)
        pairs = q.image * labels + q.label
        self._pair = np.searchsorted(pairs, m.image.astype(np.int64) * labels + m.label)
        self._best = np.full(len(pairs), -np.inf)
        np.maximum.at(self._best, self._pair, m.score)
        chosen_on = np.random.default_rng(0).random(m.images) < CHOICE_SHARE
        usable = [np.unique(q.boxes[chosen_on[q.image]] > 0), np.unique(q.boxes[~chosen_on[q.image]] > 0)]
        if threshold is not None:
            chosen_on[:] = False
        elif any(len(there) < 2 for there in usable):  # too few images to leave some out
            chosen_on[:] = False
            threshold = self._choose(np.ones(m.images))
        else:
            threshold = self._choose(chosen_on.astype(np.float64))
        self.threshold = threshold
        self._counted = (~chosen_on).astype(np.float64)

    def _choose(self, weights: np.ndarray) -> float:
        """The threshold with the highest MCC on weighted images, the lowest of equals."""
        there = weights[self._image] > 0
        best, present = self._best[there], self._boxes[there] > 0
        candidates = np.unique(best[np.isfinite(best)])
        if not len(candidates):
            return 0.5
        below, present_below = (np.searchsorted(np.sort(b), candidates) for b in (best, best[present]))
        fp, tp = (np.asarray(x, np.float64) for x in (len(best) - below, present.sum() - present_below))
        fp -= tp
        return float(candidates[int(np.argmax(mcc(tp, below - present_below, fp, present_below)))])

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics in percent of (samples, images) weights, each (samples,); images of the choice do not count.

        Returns:
            ``cgf1``, ``mcc``, ``pmf1``; ``false_boxes``: detections above the threshold for each 100
            absent phrases, also as ``false_boxes_KIND`` of those KINDS that occur.
        """
        m, weights = self._matches, weights * self._counted

        def of_images(images: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
            return np.asarray(weights @ np.bincount(images, values, minlength=m.images))

        present, predicted = self._boxes > 0, self._best >= self.threshold
        confusion = [
            of_images(self._image[cell])
            for cell in (
                predicted & present, ~predicted & ~present, predicted & ~present, ~predicted & present
            )
        ]  # fmt: skip
        above = m.score >= self.threshold
        of_present = above & present[self._pair]
        f1 = []
        for t in range(m.tp.shape[1]):
            counted = of_present & ~m.ignored[:, t]
            total = of_images(m.image[counted]) + of_images(m.gold_image)
            f1.append(2 * of_images(m.image[counted & m.tp[:, t]]) / np.maximum(total, 1e-12))
        result = {"mcc": 100 * mcc(*confusion), "pmf1": 100 * np.mean(f1, axis=0)}
        result["cgf1"] = result["mcc"] * result["pmf1"] / 100
        false = above & ~present[self._pair]
        for kind in (None, *range(len(KINDS))):
            pairs = ~present & (True if kind is None else self._kind == kind)
            if pairs.any():
                boxes = false & (True if kind is None else self._kind[self._pair] == kind)
                name = "false_boxes" if kind is None else f"false_boxes_{KINDS[kind]}"
                result[name] = 100 * of_images(m.image[boxes]) / np.maximum(of_images(self._image[pairs]), 1e-12)
        return result


def mcc(tp: np.ndarray, tn: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Matthews' correlation coefficient of counts, numbers or arrays; 0 where it is undefined."""
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return np.asarray(np.where(product > 0, (tp * tn - fp * fn) / np.sqrt(np.maximum(product, 1e-12)), 0.0))


def _kinds(tables: MatchTables) -> list[int]:
    """Index in KINDS of each pair, which means nothing for those that are present."""
    present: dict[int, list[tuple[str, str]]] = {}
    words = [_attribute_and_noun(phrase) for phrase in tables.phrases]
    for image, boxes, parts in zip(tables.queries.image.tolist(), tables.queries.boxes, words, strict=True):
        present.setdefault(image, []).extend([parts] if boxes else [])
    return [
        _kind(parts, present[image]) for image, parts in zip(tables.queries.image.tolist(), words, strict=True)
    ]  # fmt: skip


def _kind(parts: tuple[str, str], present: Sequence[tuple[str, str]]) -> int:
    attribute, noun = parts
    if any(noun == other for _, other in present):
        return 0
    return 1 if attribute and any(attribute == other for other, _ in present) else 2


def _attribute_and_noun(phrase: str) -> tuple[str, str]:
    """("", "umbrella") of "an umbrella", ("bright red", "umbrella") of "bright red umbrella"."""
    words = phrase.lower().split()
    words = words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words
    return " ".join(words[:-1]), words[-1] if words else ""
