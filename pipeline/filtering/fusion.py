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

    Args:
        boxes: (n, 4) xyxy with area, float64. score: (n,) float32, each times its teacher's weight.
            group: (n,) integers of at most 31 bits.
        moving: a cluster's box is the mean of its members, weighted by score, as they join (weighted
            box fusion); else it is its best member's.
    """
    order = falling(group, score)
    corners = [np.ascontiguousarray(column, np.float64) for column in boxes.T]
    weight = np.maximum(score, TINY, dtype=np.float64)
    leader = np.arange(len(order))
    first, size = run_lengths(group[order])
    for start in range(0, len(size), GROUPS_AT_ONCE):
        block = start + np.argsort(-size[start : start + GROUPS_AT_ONCE], kind="stable")
        turns = [order[first[block[:n]] + k] for k, n in enumerate(_larger(size[block]))]
        _match_block(corners, weight, turns, iou, leader, moving)
    begins = leader == np.arange(len(order))
    cluster, found = (np.cumsum(begins) - 1)[leader], boxes[begins]
    if moving and len(found):
        total = np.bincount(cluster, weight)
        means = np.stack([np.bincount(cluster, weight * column) / total for column in corners], 1)
        found = np.where(np.bincount(cluster)[:, None] > 1, means, found)
    return Clusters(cluster, np.flatnonzero(begins), found)


def _larger(size: np.ndarray) -> np.ndarray:
    """(max(size),) number of sizes above 0, 1, ...; ``size`` falls."""
    return np.searchsorted(-size, -np.arange(size[0]), "left")


def _match_block(
    corners: Sequence[np.ndarray], weight: np.ndarray, turns: Sequence[np.ndarray], iou: float,
    leader: np.ndarray, moving: bool,
) -> None:  # fmt: skip
    """Set the ``leader`` of the boxes of some groups: the box that began their cluster.

    turns: the k-th best box of each group that has one; groups by falling size. Place j * groups + g of
    the flat arrays is the j-th cluster of the g-th group.
    """
    most, groups = len(turns), len(turns[0])
    slots, total = np.zeros((4, most * groups)), np.zeros(most * groups)
    least: np.ndarray
    begun, count = np.zeros(most * groups, np.int64), np.zeros(groups, np.int64)
    # of float32 numbers, which are compared twice as fast: near boxes, of which the exact IoU is taken
    near = np.zeros((5, most, groups), np.float32)
    flat, scratch = near.reshape(5, -1), np.empty((3, most, groups), np.float32)
    share = iou / (1 + iou) * (1 - 1e-5)  # an IoU above ``iou`` is an intersection above this share of the areas' sum
    for rows in turns:
        n = len(rows)
        x1, y1, x2, y2 = box = [column[rows] for column in corners]
        least = ((x2 - x1) * (y2 - y1) * share).astype(np.float32)
        slot = count[:n].copy()
        if used := int(slot.max()):
            inner, side, other = scratch[:, :used, :n]
            small = [column.astype(np.float32) for column in box]
            low_x, low_y, high_x, high_y, area = near[:, :used, :n]
            np.subtract(np.minimum(high_x, small[2], inner), np.maximum(low_x, small[0], other), inner)
            np.subtract(np.minimum(high_y, small[3], side), np.maximum(low_y, small[1], other), side)
            np.maximum(inner, 0, inner)
            np.multiply(inner, side, inner)
            of, group = np.nonzero(inner > np.add(area, least, other))
            places = of * groups + group
            exact = _iou([column[places] for column in slots], [column[group] for column in box])
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
            place, box, least = place[begins], [column[begins] for column in box], least[begins]
        else:
            added = weight[rows]
            total[place] = both = total[place] + added
            added /= both  # 1 for the first
            box = [old + added * (new - old) for old, new in zip((c[place] for c in slots), box, strict=True)]
            least = ((box[2] - box[0]) * (box[3] - box[1]) * share).astype(np.float32)
        for column, values in zip(slots, box, strict=True):
            column[place] = values
        for column, values in zip(flat, (*box, least), strict=True):
            column[place] = values


def _iou(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) IoU of corresponding boxes, given as four columns."""
    sides = [np.clip(np.minimum(a[i + 2], b[i + 2]) - np.maximum(a[i], b[i]), 0, None) for i in (0, 1)]
    inner = sides[0] * sides[1]
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return np.asarray(inner / (areas[0] + areas[1] - inner))
