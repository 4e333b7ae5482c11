"""Weighted box fusion of several teachers' regions (Solovyev et al. 2021, arXiv 1910.13302), of many groups at once.

Not by the ensemble-boxes package, whose loop over the boxes of one image is several hundred times
slower than reading them. Step k matches the k-th best box of every group, as
:mod:`pipeline.filtering.nms` does; the result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.filtering.nms import run_lengths

GROUPS_AT_ONCE = 4096
"""Groups whose clusters are compared together, a compromise of numpy's overhead and memory."""
TINY = 1e-12
"""Weight in the mean of a box that scores 0."""


@dataclass(frozen=True)
class Clusters:
    """Boxes matched to clusters: n boxes, c clusters.

    cluster (n,): index of each box's cluster. best (c,): index of each cluster's best box. boxes (c, 4): xyxy.
    """

    cluster: np.ndarray
    best: np.ndarray
    boxes: np.ndarray


def falling(group: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(n,) order by group, then by falling score, then by row.

    group (n,): integers of at most 31 bits. score (n,): float32, 0 and more.
    """
    # one integer key: timsort merges stores, which are sorted already, in linear time
    bits = (score + np.float32(0)).view(np.int32)
    return np.argsort((group.astype(np.int64) << 32) - bits, kind="stable")


def match(boxes: np.ndarray, score: np.ndarray, group: np.ndarray, iou: float, *, moving: bool = True) -> Clusters:
    """Match boxes of each group to clusters, from the best to the worst.

    A box joins the cluster whose box it overlaps most, if by an IoU above ``iou``; else it begins one.
    IoUs are compared in float32.

    Args:
        boxes: (n, 4) xyxy with area, float32. score: (n,) float32, each times its teacher's weight.
            group: (n,) integers of at most 31 bits.
        moving: a cluster's box is the mean of its members, weighted by score, as they join (weighted
            box fusion); else it is its best member's.
    """
    order = falling(group, score)
    boxes, weight = np.ascontiguousarray(boxes), np.maximum(score, np.float32(TINY))
    leader = np.arange(len(order))
    first, size = run_lengths(group[order])
    for start in range(0, len(size), GROUPS_AT_ONCE):
        block = start + np.argsort(-size[start : start + GROUPS_AT_ONCE], kind="stable")
        turns = [order[first[block[:n]] + k] for k, n in enumerate(_larger(size[block]))]
        _match_block(boxes, weight, turns, np.float32(iou), leader, moving)
    begins = leader == np.arange(len(order))
    cluster, found = (np.cumsum(begins) - 1)[leader], boxes[begins].astype(np.float64)
    if moving and len(found):
        total = np.bincount(cluster, weight)
        means = np.stack([np.bincount(cluster, weight * column) / total for column in boxes.T.astype(np.float64)], 1)
        found = np.where(np.bincount(cluster)[:, None] > 1, means, found)
    return Clusters(cluster, np.flatnonzero(begins), found)


def _larger(size: np.ndarray) -> np.ndarray:
    """(max(size),) number of sizes above 0, 1, ...; ``size`` falls."""
    return np.searchsorted(-size, -np.arange(size[0]), "left")


def _match_block(
    boxes: np.ndarray, weight: np.ndarray, turns: Sequence[np.ndarray], iou: np.float32, leader: np.ndarray,
    moving: bool,
) -> None:  # fmt: skip
    """Set the ``leader`` of the boxes of some groups: the box that began their cluster.

    turns: the k-th best box of each group that has one; groups by falling size. Place j * groups + g of
    the flat arrays is the j-th cluster of the g-th group.
    """
    most, groups = len(turns), len(turns[0])
    slots = np.zeros((5, most * groups), np.float32)  # x1, y1, x2, y2 and share x area
    square, scratch = slots.reshape(5, most, groups), np.empty((3, most, groups), np.float32)
    total, begun = np.zeros(most * groups, np.float32), np.zeros(most * groups, np.int64)
    count = np.zeros(groups, np.int64)
    share = np.float32(iou / (1 + iou) * (1 - 1e-5))  # an IoU above ``iou`` is more of the areas' sum; exact below
    for rows in turns:
        n = len(rows)
        box = np.ascontiguousarray(boxes.take(rows, 0).T)
        least = (box[2] - box[0]) * (box[3] - box[1]) * share
        slot = count[:n].copy()
        if used := int(slot.max()):
            inner, side, other = scratch[:, :used, :n]
            low_x, low_y, high_x, high_y, area = square[:, :used, :n]
            np.subtract(np.minimum(high_x, box[2], inner), np.maximum(low_x, box[0], other), inner)
            np.subtract(np.minimum(high_y, box[3], side), np.maximum(low_y, box[1], other), side)
            np.maximum(inner, 0, inner)
            np.multiply(inner, side, inner)
            near = np.flatnonzero(inner > np.add(area, least, other))
            of = near // n
            group = near - of * n
            exact = _iou(slots[:4].take(of * groups + group, 1), box.take(group, 1))
            best = np.full(n, iou)
            np.maximum.at(best, group, exact)
            joined = np.flatnonzero((exact > iou) & (exact == best[group]))[::-1]
            slot[group[joined]] = of[joined]  # of equal ones the first cluster, which is set last
        begins = slot == count[:n]
        count[:n] += begins
        place = slot * groups + np.arange(n)
        begun[place[begins]] = rows[begins]
        leader[rows] = begun[place]
        if not moving:
            place, box, least = place[begins], box[:, begins], least[begins]
        elif used:
            added = weight[rows]
            total[place] = both = total[place] + added
            added /= both  # 1 for the first
            old = slots[:4].take(place, 1)
            box = old + added * (box - old)
            least = (box[2] - box[0]) * (box[3] - box[1]) * share
        else:
            total[place] = weight[rows]
        for column, values in zip(slots, (*box, least), strict=True):
            column[place] = values


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) IoU of corresponding boxes (4, n)."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    inner = sides[0] * sides[1]
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return np.asarray(inner / (areas[0] + areas[1] - inner))
