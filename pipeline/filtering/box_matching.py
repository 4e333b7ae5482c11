"""Greedy one-to-one matching of boxes with gold boxes, by COCO's rule."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask


def match_boxes(
    boxes: np.ndarray, gold: np.ndarray, ious: np.ndarray, ignore: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the boxes of one class or phrase in one image at each of t IoUs, as COCOeval.evaluateImg.

    In order of score, each box takes the free gold box of highest IoU. Ignored gold (crowds) is
    matched if no other is free, any number of times; its overlap is relative to the box's area.

    Args:
        boxes: (n, 4) xyxy by falling score. gold: (m, 4) xyxy. ious: (t,) ascending. ignore: (m,)
            bool; default: none.

    Returns:
        tp (n, t), ignored (n, t), and the box matched to each gold box at the lowest IoU (m,), else
        -1.
    """
    ignore = np.zeros(len(gold), bool) if ignore is None else ignore
    return match_overlaps(overlaps(boxes, gold, ignore), ious, ignore)


def overlaps(boxes: np.ndarray, gold: np.ndarray, ignore: np.ndarray) -> np.ndarray:
    """(n, m) IoU of boxes with gold boxes; with ignored ones the share of the box."""
    if not len(boxes) or not len(gold):
        return np.zeros((len(boxes), len(gold)))
    return np.asarray(coco_mask.iou(xywh(boxes), xywh(gold), ignore.astype(np.uint8)))


def match_overlaps(
    overlap: np.ndarray, ious: np.ndarray, ignore: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As :func:`match_boxes`, from the boxes' :func:`overlaps` (n, m)."""
    n, m = overlap.shape
    tp = np.zeros((n, len(ious)), bool)
    ignored = np.zeros_like(tp)
    matched_dt = np.full(m, -1)
    if not overlap.size:
        return tp, ignored, matched_dt
    thresholds = np.minimum(ious, 1 - 1e-10)[:, None]
    free = np.ones((len(ious), m), bool)
    rows = np.arange(len(ious))
    for i in np.flatnonzero(overlap.max(axis=1) >= thresholds[0]):
        fits = free & (overlap[i] >= thresholds)
        counted = np.where(fits & ~ignore, overlap[i], -1.0)
        best = m - 1 - np.argmax(counted[:, ::-1], axis=1)  # the last of equal ones, as COCOeval
        tp[i] = counted[rows, best] >= 0
        free[rows[tp[i]], best[tp[i]]] = False
        if tp[i, 0]:
            matched_dt[best[0]] = i
        ignored[i] = ~tp[i] & (fits & ignore).any(axis=1)
    return tp, ignored, matched_dt


def xywh(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) float64 x, y, width, height of xyxy boxes, as pycocotools takes them."""
    return np.ascontiguousarray(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1), np.float64)
