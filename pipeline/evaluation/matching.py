"""Matches detections to gold boxes by COCO's and LVIS' rules, with precision of the matches.

pycocotools and lvis loop over every (class, area, image) and do not keep the matches, which the
bootstrap needs. Here Python loops only over (image, class) pairs with gold; the rest is vectorised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.evaluation.metrics import ImageResult, xywh

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Matches:
    """The n detections and g gold boxes of a set, by image, detections by falling score.

    image, label, score (n,); area (n,) in pixels. tp (n, 10): matched to a gold box, at each of
    IOUS. ignored (n, 10): matched to a crowd box, or outside the federated protocol. present,
    absent (n,): the class is annotated as present (crowds count) / absent in the image. gold_image,
    gold_label, gold_area (g,); gold_score (g,): of the detection matched at IoU 0.5, else NaN.
    images: number of images.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    area: np.ndarray
    tp: np.ndarray
    ignored: np.ndarray
    present: np.ndarray
    absent: np.ndarray
    gold_image: np.ndarray
    gold_label: np.ndarray
    gold_area: np.ndarray
    gold_score: np.ndarray
    images: int


def match_pair(boxes: np.ndarray, gold: np.ndarray, ignore: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Greedy matching of one class in one image at each of IOUS, as COCOeval.evaluateImg.

    In order of score, each detection takes the free gold box of highest IoU. Ignored gold (crowds)
    is matched if no other is free, any number of times; its overlap is relative to the detection's
    area.

    Args:
        boxes: (n, 4) xyxy by falling score. gold: (m, 4) xyxy. ignore: (m,) bool.

    Returns:
        tp (n, 10), ignored (n, 10), and the detection matched to each gold box at IoU 0.5 (m,),
        else -1.
    """
    tp = np.zeros((len(boxes), len(IOUS)), bool)
    ignored = np.zeros_like(tp)
    matched_dt = np.full(len(gold), -1)
    if not len(boxes) or not len(gold):
        return tp, ignored, matched_dt
    overlap = coco_mask.iou(xywh(boxes), xywh(gold), ignore.astype(np.uint8))
    thresholds = np.minimum(IOUS, 1 - 1e-10)[:, None]
    free = np.ones((len(IOUS), len(gold)), bool)
    rows = np.arange(len(IOUS))
    for i in np.flatnonzero(overlap.max(axis=1) >= thresholds[0]):
        fits = free & (overlap[i] >= thresholds)
        counted = np.where(fits & ~ignore, overlap[i], -1.0)
        best = len(gold) - 1 - np.argmax(counted[:, ::-1], axis=1)  # the last of equal ones, as COCOeval
        tp[i] = counted[rows, best] >= 0
        free[rows[tp[i]], best[tp[i]]] = False
        if tp[i, 0]:
            matched_dt[best[0]] = i
        ignored[i] = ~tp[i] & (fits & ignore).any(axis=1)
    return tp, ignored, matched_dt


def match(results: Sequence[ImageResult], max_per_class: int | None = None, *, federated: bool = False) -> Matches:
    """Match every image's detections.

    Args:
        max_per_class: best detections of a class in an image that count; None: all.
        federated: LVIS' rules: detections of classes that are not verified in the image are
            dropped, and false positives of classes that are not annotated exhaustively are ignored.
    """
    detections: list[dict[str, np.ndarray]] = []
    golds: list[dict[str, np.ndarray]] = []
    for number, r in enumerate(results):
        order = np.argsort(-r.scores, kind="stable")
        gold_labels = np.unique(r.gold_labels)
        present = np.isin(r.labels, gold_labels)
        absent = ~present
        if r.absent is not None:
            absent &= np.isin(r.labels, r.absent)
        if federated:
            order = order[(absent | present)[order]]
        if max_per_class is not None:
            order = order[rank_in_class(r.labels[order]) < max_per_class]
        labels, boxes, scores = r.labels[order], r.boxes[order], r.scores[order]
        tp = np.zeros((len(order), len(IOUS)), bool)
        ignored = np.zeros_like(tp)
        gold_score = np.full(len(r.gold_labels), np.nan)
        for label in gold_labels:
            dt, gt = np.flatnonzero(labels == label), np.flatnonzero(r.gold_labels == label)
            tp[dt], ignored[dt], matched_dt = match_pair(boxes[dt], r.gold_boxes[gt], r.gold_ignore[gt])
            matched = matched_dt >= 0
            gold_score[gt[matched]] = scores[dt[matched_dt[matched]]]
        if federated and len(r.not_exhaustive):
            ignored |= ~tp & np.isin(labels, r.not_exhaustive)[:, None]
        detections.append(
            {
                "image": np.full(len(order), number), "label": labels, "score": scores, "area": _area(boxes),
                "tp": tp, "ignored": ignored, "present": present[order], "absent": absent[order],
            }
        )  # fmt: skip
        counts = ~r.gold_ignore
        golds.append(
            {
                "gold_image": np.full(int(counts.sum()), number), "gold_label": r.gold_labels[counts],
                "gold_area": _area(r.gold_boxes[counts]), "gold_score": gold_score[counts],
            }
        )  # fmt: skip
    columns = {name: np.concatenate([row[name] for row in rows]) for rows in (detections, golds) for name in rows[0]}
    return Matches(**columns, images=len(results))


def _area(boxes: np.ndarray) -> np.ndarray:
    area: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """(n,) number of earlier elements with the same label."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.searchsorted(ordered, ordered)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - first
    return rank


def by_class(matches: Matches) -> list[tuple[int, np.ndarray, int]]:
    """(label, indices of its detections by falling score, number of its gold boxes), if any."""
    order = np.lexsort((-matches.score, matches.label))
    ordered = matches.label[order]
    labels, counts = np.unique(matches.gold_label, return_counts=True)
    low, high = np.searchsorted(ordered, labels), np.searchsorted(ordered, labels, side="right")
    return [(int(n), order[a:b], int(c)) for n, a, b, c in zip(labels, low, high, counts, strict=True)]


def precision_curve(tp: np.ndarray, ignored: np.ndarray, gold: int) -> np.ndarray:
    """(10, 101): interpolated precision at each of IOUS and RECALLS, as COCO.

    tp, ignored: (n, 10) of one class's detections by falling score. gold: number of its boxes.
    """
    tps = np.cumsum(tp, axis=0, dtype=np.float64)
    fps = np.cumsum(~tp & ~ignored, axis=0, dtype=np.float64)
    precision = np.maximum.accumulate((tps / (tps + fps + np.spacing(1)))[::-1], axis=0)[::-1]
    curve = np.zeros((len(IOUS), len(RECALLS)))
    for t in range(len(IOUS)):
        at = np.searchsorted(tps[:, t] / gold, RECALLS, side="left")
        curve[t, at < len(tp)] = precision[at[at < len(tp)], t]
    return curve


def class_curves(matches: Matches) -> dict[int, np.ndarray]:
    """:func:`precision_curve` of every label that has gold; its mean is the class's AP."""
    return {
        label: precision_curve(matches.tp[rows], matches.ignored[rows], gold) for label, rows, gold in by_class(matches)
    }
