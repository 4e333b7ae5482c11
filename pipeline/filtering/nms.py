"""Non-maximum suppression in numpy, of many groups at once; ties are broken by row order."""

from __future__ import annotations

import numpy as np


def pair_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) IoU of corresponding boxes (n, 4) xyxy float64; nan if both have no area."""
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, 2:], b[:, 2:])
    side = np.clip(high - low, 0, None)
    inner = side[:, 0] * side[:, 1]
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(inner / (area_a + area_b - inner))


def suppress(
    boxes: np.ndarray, score: np.ndarray, group: np.ndarray, iou: float, *, spare: np.ndarray | None = None
) -> np.ndarray:
    """(n,) True for boxes whose IoU with a kept, better box of the same group is above ``iou``.

    Equivalent to torchvision's ``batched_nms``; of equal scores the earlier row is better.

    boxes (n, 4) xyxy; score (n,); group (n,) integers: only boxes of one group suppress each other;
    spare (n,) integers: boxes with equal values do not.
    """
    order = np.lexsort((-score, group))  # stable: of equal scores the earlier row comes first
    boxes = boxes[order].astype(np.float64)
    first, size = run_lengths(group[order])
    spare = None if spare is None else spare[order]
    removed = np.zeros(len(order), bool)
    # step k: in every group of more than k + 1 boxes, the k-th best box, if not removed, suppresses the following ones
    active = np.flatnonzero(size > 1)
    k = 0
    while len(active):
        lead = first[active] + k
        kept = ~removed[lead]
        lead, after = lead[kept], size[active][kept] - 1 - k
        leader = np.repeat(lead, after)
        follower = leader + 1 + concatenated_ranges(after)
        remaining = ~removed[follower]
        leader, follower = leader[remaining], follower[remaining]
        overlaps = pair_iou(boxes[leader], boxes[follower]) > iou
        if spare is not None:
            overlaps &= spare[leader] != spare[follower]
        removed[follower[overlaps]] = True
        k += 1
        active = active[size[active] > k + 1]
    result = np.zeros(len(order), bool)
    result[order] = removed
    return result


def over_limit(score: np.ndarray, group: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """(n,) True for all but the ``limit`` best of each group, a number or (n,); ties are broken by row order."""
    order = np.lexsort((-score, group))
    _, size = run_lengths(group[order])
    result = np.zeros(len(order), bool)
    result[order[concatenated_ranges(size) >= (limit[order] if isinstance(limit, np.ndarray) else limit)]] = True
    return result


def run_lengths(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths) of runs of equal values."""
    starts = (
        np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, np.int64)
    )
    return starts, np.diff(np.append(starts, len(values)))


def concatenated_ranges(sizes: np.ndarray) -> np.ndarray:
    """Concatenation of 0, 1, ..., size - 1 for each of ``sizes``."""
    return np.asarray(np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes))
