"""NMS of our own against torchvision's, and against the definition where torchvision has none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.filtering.nms import over_limit, suppress

# few distinct corners, sizes and scores: overlaps, equal boxes, equal scores and boxes without area are common
box = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 4), st.integers(0, 4)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
region = st.tuples(box, st.sampled_from([0.1, 0.25, 0.5, 0.7]), st.integers(0, 3), st.integers(0, 2))


def arrays(regions):
    boxes = np.array([r[0] for r in regions], np.float32).reshape(-1, 4)
    return (
        boxes,
        np.array([r[1] for r in regions], np.float32),
        *(np.array([r[i] for r in regions], np.int64) for i in (2, 3)),
    )


def torchvision_keeps(boxes, score, group, iou):
    import torch
    from torchvision.ops import batched_nms

    given = (torch.from_numpy(boxes).double(), torch.from_numpy(score).double(), torch.from_numpy(group))
    return set(batched_nms(*given, iou).tolist())


@settings(deadline=None, max_examples=300)
@given(st.lists(region, max_size=25), st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_it_keeps_what_torchvision_keeps(regions, iou):
    boxes, score, group, _ = arrays(regions)
    kept = set(np.flatnonzero(~suppress(boxes, score, group, iou)).tolist())
    assert kept == torchvision_keeps(boxes, score, group, iou)


@pytest.mark.parametrize("seed", range(3))
def test_on_many_random_boxes_too(seed):
    rng = np.random.default_rng(seed)
    n = 4000
    corner, group = rng.random((n, 2)) * 60, rng.integers(0, 150, n)
    boxes = np.concatenate([corner, corner + rng.random((n, 2)) * 30 + 30], 1).astype(np.float32)
    score = rng.random(n).astype(np.float32).round(2)
    gone = suppress(boxes, score, group, 0.5)
    assert 0.2 < gone.mean() < 0.8
    assert set(np.flatnonzero(~gone).tolist()) == torchvision_keeps(boxes, score, group, 0.5)


@settings(deadline=None, max_examples=200)
@given(st.lists(region, max_size=15))
def test_boxes_that_share_what_is_spared_do_not_meet(regions):
    boxes, score, group, spare = arrays(regions)
    gone: set[int] = set()
    order = sorted(range(len(regions)), key=lambda i: (-score[i], i))
    for place, i in enumerate(order):
        for j in order[place + 1 :] if i not in gone else ():
            if group[i] == group[j] and spare[i] != spare[j]:
                low, high = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
                inner = float(np.prod(np.clip(high - low, 0, None)))
                union = float(sum(np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j))) - inner
                if union > 0 and inner / union > 0.5:
                    gone.add(j)
    assert set(np.flatnonzero(suppress(boxes, score, group, 0.5, spare=spare)).tolist()) == gone


def test_the_best_of_each_group_stay_and_of_equals_the_earlier():
    score, group = np.array([0.2, 0.9, 0.9, 0.9, 0.5]), np.array([1, 0, 0, 0, 1])
    assert over_limit(score, group, 2).tolist() == [False, False, False, True, False]
    assert over_limit(score, group, 1).tolist() == [True, False, True, True, False]
    assert over_limit(np.zeros(0), np.zeros(0, int), 1).tolist() == []
