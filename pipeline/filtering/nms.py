"""Non-maximum suppression in numpy: all groups of a shard at once, ties decided by the order of the
rows.
"""

from __future__ import annotations

import numpy as np


def pair_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of the boxes in the same rows of ``a`` and ``b``, (n, 4) xyxy in
    float64.

    Two boxes without area give nan, as in torchvision.
    """
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, 2:], b[:, 2:])
    side = np.clip(high - low, 0, None)
    inner = side[:, 0] * side[:, 1]
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return inner / (area_a + area_b - inner)


def suppress(
    boxes: np.ndarray, score: np.ndarray, group: np.ndarray, iou: float, *, spare: np.ndarray | None = None
) -> np.ndarray:
    """(n,) True where a better box of the same group that stays itself overlaps by more than
    ``iou``.

    What stays is what torchvision's ``batched_nms`` keeps; of equal scores the earlier row is the
    better one.

    Args:
        boxes: (n, 4) xyxy. score: (n,). group: (n,) integers; boxes of different groups never meet.
        spare: (n,) integers; boxes with the same one do not suppress each other.
    """
    order = np.lexsort((-score, group))  # stable: of equal scores the earlier row comes first
    boxes = boxes[order].astype(np.float64)
    first, size = run_lengths(group[order])
    spare = None if spare is None else spare[order]
    gone = np.zeros(len(order), bool)
    # Round k: in every group that has so many, the k-th best box, if it is still there, suppresses those after it.
    busy = np.flatnonzero(size > 1)
    k = 0
    while len(busy):
        lead = first[busy] + k
        acting = ~gone[lead]
        lead, after = lead[acting], size[busy][acting] - 1 - k
        leader = np.repeat(lead, after)
        follower = leader + 1 + concatenated_ranges(after)
        there = ~gone[follower]
        leader, follower = leader[there], follower[there]
        bad = pair_iou(boxes[leader], boxes[follower]) > iou
        if spare is not None:
            bad &= spare[leader] != spare[follower]
        gone[follower[bad]] = True
        k += 1
        busy = busy[size[busy] > k + 1]
    result = np.zeros(len(order), bool)
    result[order] = gone
    return result


def over_limit(score: np.ndarray, group: np.ndarray, limit: int) -> np.ndarray:
    """(n,) True for all but the ``limit`` best of each group; of equal scores the earlier row is
    the better one.
    """
    order = np.lexsort((-score, group))
    _, size = run_lengths(group[order])
    result = np.zeros(len(order), bool)
    result[order[concatenated_ranges(size) >= limit]] = True
    return result


def run_lengths(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths) of the runs of equal values."""
    starts = (
        np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, np.int64)
    )
    return starts, np.diff(np.append(starts, len(values)))


def concatenated_ranges(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... size-1 for each of ``sizes``, one after the other."""
    total = int(sizes.sum())
    return np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
