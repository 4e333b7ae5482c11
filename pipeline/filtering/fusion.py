"""Weighted box fusion of several teachers' regions (Solovyev et al. 2021, arXiv 1910.13302), of many groups at once.

Not by the ensemble-boxes package, whose loop over the boxes of one image is several hundred times
slower than reading them. Step k matches the k-th best box of every group, as
:mod:`pipeline.filtering.nms` does; the result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array

from pipeline.filtering.nms import run_lengths

GROUPS_AT_ONCE = 8192
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
    weight = np.maximum(score, np.float32(TINY))
    leader, begun = np.empty(len(order), np.int64), np.zeros(len(order), bool)
    first, size = run_lengths(group[order])
    for start in range(0, len(size), GROUPS_AT_ONCE):
        block = start + np.argsort(-size[start : start + GROUPS_AT_ONCE], kind="stable")
        counts = _larger(size[block])
        rows = order[np.concatenate([first[block[:n]] + k for k, n in enumerate(counts)])]
        corners = np.ascontiguousarray(boxes.take(rows, 0).T)
        place, begins = _match_block(corners, weight.take(rows), counts, np.float32(iou), moving)
        begun[rows[begins]] = True
        best = np.empty(len(counts) * counts[0], np.int64)
        best[place[begins]] = rows[begins]
        leader[rows] = best.take(place)
    cluster, found = (np.cumsum(begun) - 1)[leader], boxes[begun].astype(np.float64)
    if moving and len(found):
        sums = _sums(cluster, weight, boxes)
        np.divide(sums[:, :4], sums[:, 4:], out=found, where=np.bincount(cluster)[:, None] > 1)
    return Clusters(cluster, np.flatnonzero(begun), found)


def _sums(cluster: np.ndarray, weight: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(c, 5) float64 sums of each cluster's weights times its boxes, and of its weights, added in the order of rows."""
    values = np.ones((len(boxes), 5))
    values[:, :4] = boxes
    ends = np.arange(len(boxes) + 1)
    return np.asarray(csc_array((weight.astype(np.float64), cluster, ends)) @ values)


def _larger(size: np.ndarray) -> list[int]:
    """Number of sizes above 0, 1, ..., max(size) - 1; ``size`` falls."""
    counts: list[int] = np.searchsorted(-size, -np.arange(size[0]), "left").tolist()
    return counts


def _match_block(
    boxes: np.ndarray, weight: np.ndarray, counts: Sequence[int], iou: np.float32, moving: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Match the boxes of some groups, which fall by size.

    Args:
        boxes: (4, n), the best box of each group, then the second best of each that has one, and so on.
            weight: (n,). counts: numbers of groups with more than 0, 1, ... boxes.

    Returns:
        (n,) cluster of each box, j * groups + g for the j-th of the g-th group; (n,) whether it begins one.
    """
    most, groups = len(counts), counts[0]
    slots = np.zeros((6, most * groups), np.float32)  # x1, y1, x2, y2, area and share x area
    square, scratch = slots.reshape(6, most, groups), np.empty((3, most * groups), np.float32)
    total, count = np.zeros(most * groups, np.float32), np.zeros(groups, np.int64)
    share = np.float32(iou / (1 + iou) * (1 - 1e-5))  # an IoU above ``iou`` is more of the areas' sum; exact below
    areas = _areas(boxes)
    places, begun = np.empty(len(weight), np.int64), np.empty(len(weight), bool)
    end = used = 0
    for n in counts:
        turn = slice(end, end := end + n)
        box, area, added, place, begins = boxes[:, turn], areas[turn], weight[turn], places[turn], begun[turn]
        slot = count[:n].copy()
        if used:
            inner, side, other = scratch[:, : used * n].reshape(3, used, n)
            low_x, low_y, high_x, high_y, _, least = square[:, :used, :n]
            np.subtract(np.minimum(high_x, box[2], inner), np.maximum(low_x, box[0], other), inner)
            np.subtract(np.minimum(high_y, box[3], side), np.maximum(low_y, box[1], other), side)
            np.maximum(inner, 0, inner)
            np.multiply(inner, side, inner)
            near = np.flatnonzero(inner > np.add(least, area * share, other))
            of = near // n
            group = near - of * n
            both = inner.ravel().take(near)
            exact = both / (slots[4].take(of * groups + group) + area.take(group) - both)
            best = np.full(n, iou)
            np.maximum.at(best, group, exact)
            joined = np.flatnonzero((exact > iou) & (exact == best.take(group)))[::-1]
            slot[group[joined]] = of[joined]  # of equal ones the first cluster, which is set last
        np.equal(slot, count[:n], begins)
        count[:n] += begins
        np.add(np.multiply(slot, groups, place), np.arange(n), place)
        if not moving:
            place, box, area = place[begins], box[:, begins], area[begins]
        elif used:
            whole = total.take(place) + added
            total[place] = whole
            added = added / whole  # 1 for the first
            old = slots[:4].take(place, 1)
            box = old + added * (box - old)
            area = _areas(box)
        else:
            total[place] = added
        for column, values in zip(slots, (*box, area, area * share), strict=True):
            column[place] = values
        used = int(count.max())
    return places, begun


def _areas(boxes: np.ndarray) -> np.ndarray:
    """(n,) areas of boxes (4, n)."""
    return np.asarray((boxes[2] - boxes[0]) * (boxes[3] - boxes[1]))
