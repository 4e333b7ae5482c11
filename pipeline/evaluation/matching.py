"""Which detections find a gold box, and average precision from that, by COCO's and LVIS' rules.

pycocotools and lvis visit every (class, area, image) and keep nothing that a bootstrap could use. Here a pair of image
and class is visited only if it has gold and detections that overlap it; all else is arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.evaluation.metrics import ImageResult

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Matches:
    """Every detection of a set against the set's gold. n detections, image by image, each image's by falling score.

    image, label (n,); score, area (n,), area in pixels; hit (n, 10): it is the one that finds a gold box, at each IoU of
    IOUS; ignored (n, 10): neither right nor wrong; present, absent (n,): its name has gold in the image, be it a crowd's, or is
    known not to be there; of a name that is neither, nothing is known.
    gold_image, gold_label, gold_area, gold_score (g,): the boxes to be found, and the score of the detection that finds each at IoU
    0.5, NaN if none does. images: how many.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    area: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    present: np.ndarray
    absent: np.ndarray
    gold_image: np.ndarray
    gold_label: np.ndarray
    gold_area: np.ndarray
    gold_score: np.ndarray
    images: int


def match_pair(boxes: np.ndarray, gold: np.ndarray, ignore: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Greedy matching of one class in one image at all of IOUS, as COCOeval.evaluateImg does it.

    Best score first, each detection takes the free gold box of highest IoU; ignored gold (crowds) may be taken many times,
    when nothing else is left, and its overlap is measured against the detection's own area.

    Args:
        boxes: (n, 4) xyxy by falling score. gold: (m, 4) xyxy. ignore: (m,) bool.

    Returns:
        hit (n, 10), ignored (n, 10), and who found each gold box at IoU 0.5 (m,), -1 for none.
    """
    hit = np.zeros((len(boxes), len(IOUS)), bool)
    ignored = np.zeros_like(hit)
    matched_dt = np.full(len(gold), -1)
    if not len(boxes) or not len(gold):
        return hit, ignored, matched_dt
    overlap = coco_mask.iou(_xywh(boxes), _xywh(gold), ignore.astype(np.uint8))
    wanted = np.minimum(IOUS, 1 - 1e-10)[:, None]
    free = np.ones((len(IOUS), len(gold)), bool)
    rows = np.arange(len(IOUS))
    for i in np.flatnonzero(overlap.max(axis=1) >= wanted[0]):
        fits = free & (overlap[i] >= wanted)
        counted = np.where(fits & ~ignore, overlap[i], -1.0)
        best = len(gold) - 1 - np.argmax(counted[:, ::-1], axis=1)  # of equal ones the last, as COCOeval
        hit[i] = counted[rows, best] >= 0
        free[rows[hit[i]], best[hit[i]]] = False
        if hit[i, 0]:
            matched_dt[best[0]] = i
        ignored[i] = ~hit[i] & (fits & ignore).any(axis=1)
    return hit, ignored, matched_dt


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1), np.float64)


def match(results: Sequence[ImageResult], max_per_class: int | None = None, *, federated: bool = False) -> Matches:
    """Match every image's detections.

    Args:
        max_per_class: only so many best detections of a class in an image count. federated: LVIS' rules: detections of
            classes of which nothing is known in an image are dropped, and of those that are not boxed exhaustively only
            the right ones count.
    """
    parts: list[dict[str, np.ndarray]] = []
    golds: list[dict[str, np.ndarray]] = []
    for number, r in enumerate(results):
        order = np.argsort(-r.scores, kind="stable")
        known = np.unique(r.gold_labels)
        present = np.isin(r.labels, known)
        absent = ~present
        if r.absent is not None:
            absent &= np.isin(r.labels, r.absent)
        if federated:
            order = order[(absent | present)[order]]
        if max_per_class is not None:
            order = order[_rank_in_class(r.labels[order]) < max_per_class]
        labels, boxes, scores = r.labels[order], r.boxes[order], r.scores[order]
        hit = np.zeros((len(order), len(IOUS)), bool)
        ignored = np.zeros_like(hit)
        found = np.full(len(r.gold_labels), np.nan)
        for label in known:
            mine, theirs = np.flatnonzero(labels == label), np.flatnonzero(r.gold_labels == label)
            hit[mine], ignored[mine], matched_dt = match_pair(boxes[mine], r.gold_boxes[theirs], r.gold_ignore[theirs])
            took = matched_dt >= 0
            found[theirs[took]] = scores[mine[matched_dt[took]]]
        if federated and len(r.not_exhaustive):
            ignored |= ~hit & np.isin(labels, r.not_exhaustive)[:, None]
        parts.append(
            {
                "image": np.full(len(order), number), "label": labels, "score": scores, "area": _area(boxes),
                "hit": hit, "ignored": ignored, "present": present[order], "absent": absent[order],
            }
        )  # fmt: skip
        counts = ~r.gold_ignore
        golds.append(
            {
                "gold_image": np.full(int(counts.sum()), number), "gold_label": r.gold_labels[counts],
                "gold_area": _area(r.gold_boxes[counts]), "gold_score": found[counts],
            }
        )  # fmt: skip
    columns = {name: np.concatenate([p[name] for p in rows]) for rows in (parts, golds) for name in rows[0]}
    return Matches(**columns, images=len(results))


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many of the same label stand before each."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.searchsorted(ordered, ordered)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - first
    return rank


def by_class(matches: Matches) -> list[tuple[int, np.ndarray, int]]:
    """(label, its detections by falling score, its gold boxes) of every label that has gold."""
    order = np.lexsort((np.arange(len(matches.score)), -matches.score, matches.label))
    ordered = matches.label[order]
    labels, counts = np.unique(matches.gold_label, return_counts=True)
    low, high = np.searchsorted(ordered, labels), np.searchsorted(ordered, labels, side="right")
    return [(int(n), order[a:b], int(c)) for n, a, b, c in zip(labels, low, high, counts, strict=True)]


def precision_curve(hit: np.ndarray, ignored: np.ndarray, gold: int) -> np.ndarray:
    """(10, 101): precision at each of RECALLS, the best there is at that recall or beyond, as COCO's.

    hit, ignored: (n, 10) of one class' detections by falling score. gold: its boxes.
    """
    right = np.cumsum(hit, axis=0, dtype=np.float64)
    wrong = np.cumsum(~hit & ~ignored, axis=0, dtype=np.float64)
    best = np.maximum.accumulate((right / (right + wrong + np.spacing(1)))[::-1], axis=0)[::-1]
    curve = np.zeros((len(IOUS), len(RECALLS)))
    for t in range(len(IOUS)):
        at = np.searchsorted(right[:, t] / gold, RECALLS, side="left")
        curve[t, at < len(hit)] = best[at[at < len(hit)], t]
    return curve


def class_curves(matches: Matches) -> dict[int, np.ndarray]:
    """:func:`precision_curve` of every label that has gold; its mean is the class' AP."""
    return {
        label: precision_curve(matches.hit[rows], matches.ignored[rows], gold)
        for label, rows, gold in by_class(matches)
    }
