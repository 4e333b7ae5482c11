"""Matching and weighted box fusion of many groups at once against the paper's loop over one image's boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.filtering import fusion
from pipeline.filtering.fusion import falling, match

# few distinct corners and scores: overlaps, equal boxes, equal IoUs and equal scores are common
box = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 5), st.integers(1, 5)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
region = st.tuples(box, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7]), st.integers(0, 3))


def iou_of(a, b):
    zero = np.float32(0)
    inner = max(zero, min(a[2], b[2]) - max(a[0], b[0])) * max(zero, min(a[3], b[3]) - max(a[1], b[1]))
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def slow(boxes, score, iou, moving):
    """Clusters of one group, as lists of rows, and their boxes: section 3 of arXiv 1910.13302, in float32."""
    clusters, fused, total = [], [], []
    weight = np.maximum(score, np.float32(1e-12))
    for i in sorted(range(len(score)), key=lambda i: (-score[i], i)):
        overlaps = [iou_of(b, boxes[i]) for b in fused]
        j = int(np.argmax(overlaps)) if overlaps else 0
        if not overlaps or overlaps[j] <= np.float32(iou):
            clusters.append([i])
            fused.append(boxes[i])
            total.append(weight[i])
            continue
        clusters[j].append(i)
        if moving:
            total[j] += weight[i]
            fused[j] = fused[j] + weight[i] / total[j] * (boxes[i] - fused[j])
    if moving:  # the mean so far, and here as it is defined
        for j, rows in enumerate(clusters):
            mean = np.average(boxes[rows].astype(float), 0, weight[rows].astype(float))
            np.testing.assert_allclose(fused[j], mean, rtol=1e-5, atol=1e-5)
            fused[j] = mean
    return clusters, fused


def check(boxes, score, group, iou, moving):
    found = match(boxes, score, group, iou, moving=moving)
    rows, of_cluster = {}, {}
    for g in np.unique(group):
        mine = np.flatnonzero(group == g)
        for members, fused in zip(*slow(boxes[mine], score[mine], iou, moving), strict=True):
            rows[int(mine[members[0]])], of_cluster[int(mine[members[0]])] = fused, sorted(mine[members].tolist())
    assert found.best.tolist() == sorted(rows)
    for c, best in enumerate(found.best.tolist()):
        assert np.flatnonzero(found.cluster == c).tolist() == of_cluster[best]
        np.testing.assert_allclose(found.boxes[c], rows[best], rtol=1e-9, atol=1e-9)
        if len(of_cluster[best]) == 1 or not moving:
            assert (found.boxes[c] == boxes[best]).all()


@settings(deadline=None, max_examples=300)
@given(st.lists(region, max_size=25), st.sampled_from([0.25, 0.5, 0.55, 1.0]), st.booleans())
@example([((0, 0, 2, 2), 0.0, 0), ((0, 0, 2, 2), 0.0, 0)], 0.5, True)
def test_it_matches_and_fuses_as_the_loop(regions, iou, moving):
    boxes = np.array([r[0] for r in regions], np.float32).reshape(-1, 4)
    score, group = np.array([r[1] for r in regions], np.float32), np.array([r[2] for r in regions], np.int64)
    check(boxes, score, group, iou, moving)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("moving", [True, False])
def test_on_many_random_boxes_and_blocks_of_groups_too(seed, moving, monkeypatch):
    monkeypatch.setattr(fusion, "GROUPS_AT_ONCE", 16)
    rng = np.random.default_rng(seed)
    n = 1200
    corner, group = rng.random((n, 2)) * 60 - 10, rng.integers(0, 100, n)
    boxes = np.concatenate([corner, corner + rng.random((n, 2)) * 30 + 40], 1).astype(np.float32)
    check(boxes, rng.random(n).astype(np.float32), group, 0.55, moving)


def test_the_order_is_by_group_then_falling_score_then_row():
    score = np.array([0.2, 0.9, -0.0, 0.9, 1.0, 0.0], np.float32)
    assert falling(np.array([1, 0, 1, 0, 1, 1]), score).tolist() == [1, 3, 4, 0, 2, 5]
    assert falling(np.zeros(0, np.int64), np.zeros(0, np.float32)).tolist() == []
