"""Order of regions under review: best first, whole images, unbiased samples; and the estimate with its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.review import ORDERS as OFFERED
from pipeline.filtering.calibration import wilson
from pipeline.filtering.review_order import (
    HALF_WIDTH,
    ORDERS,
    STRATA,
    disagreement,
    draws,
    estimate,
    image_order,
    sample_order,
    strata_of,
    uncertain,
)

IMAGES = st.lists(st.integers(0, 8), min_size=1, max_size=60)


def test_the_command_offers_these_orders():
    assert OFFERED == ORDERS


@given(IMAGES, st.integers(0, 99))
def test_images_are_whole_and_in_the_order_of_their_best_region(images, seed):
    rng, image = np.random.default_rng(seed), np.array(images)
    rank, draw = rng.integers(0, 4, len(image)) / 4, rng.random(len(image))
    order, starts = image_order(rank, draw, image)
    assert sorted(order) == list(range(len(image)))
    parts = np.split(order, starts[1:])
    assert [set(image[part]) for part in parts] == [{image[part[0]]} for part in parts]  # one image a stop
    assert len(parts) == len(set(images))  # and each image once
    pairs = list(zip(rank, draw, strict=True))
    for part in parts:
        assert [pairs[i] for i in part] == sorted(pairs[i] for i in part)
    assert [pairs[part[0]] for part in parts] == sorted(pairs[part[0]] for part in parts)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(0, 99))
def test_a_stratified_sample_takes_one_of_each_stratum_in_turn(scores, seed):
    score, draw = np.array(scores, np.float32), draws(seed, "0", len(scores))
    stratum = strata_of(score)
    assert set(stratum) == set(range(stratum.max() + 1)) and stratum.max() < STRATA
    order = sample_order(draw, stratum)
    assert sorted(order) == list(range(len(scores)))
    left = np.bincount(stratum).tolist()
    while order.size:
        n = sum(count > 0 for count in left)
        turn, order = order[:n], order[n:]
        assert sorted(stratum[turn]) == [s for s, count in enumerate(left) if count]
        left = [max(0, count - 1) for count in left]


def test_deciles_of_distinct_scores_are_equally_large():
    assert np.bincount(strata_of(np.random.default_rng(0).random(1000))).tolist() == [100] * 10


def test_a_shards_draws_depend_on_seed_and_name_only():
    assert (draws(1, "00000", 50)[:20] == draws(1, "00000", 20)).all()
    assert not (draws(1, "00000", 20) == draws(2, "00000", 20)).any()
    assert not (draws(1, "00000", 20) == draws(1, "00001", 20)).any()


def test_near_the_threshold_and_where_others_disagree_comes_first():
    score, verified = np.array([0.9, 0.52, 0.1, 0.45]), np.array([0.5, 0.9, 0.8, 0.1])
    assert np.argsort(uncertain(score, 0.5)).tolist() == [1, 3, 0, 2]
    assert np.argsort(uncertain(score, 0.5, verified)).tolist()[0] == 0
    assert np.argsort(disagreement(score, None, 0, verified)).tolist() == [2, 0, 1, 3]
    assert np.argsort(disagreement(score, np.array([2.0, 1, 2, 2]), 2, None), kind="stable").tolist() == [1, 0, 2, 3]


@given(st.integers(1, 400), st.data())
def test_one_stratum_has_wilsons_interval(n, data):
    correct = data.draw(st.integers(0, n))
    found = estimate(np.array([correct]), np.array([n]), np.array([10**6]))
    low, high = wilson(correct, n)
    assert found.precision == pytest.approx(correct / n)
    assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 1)), abs=1e-12)
    share = (n + found.more) / n
    low, high = wilson(correct * share, n * share)
    assert high - low <= 2 * HALF_WIDTH + 1e-12
    if found.more:
        share = (n + found.more - 1) / n
        low, high = wilson(correct * share, n * share)
        assert high - low > 2 * HALF_WIDTH


def test_strata_are_weighted_by_their_size():
    found = estimate(np.array([10, 0]), np.array([10, 10]), np.array([900, 100]))
    assert found.precision == pytest.approx(0.9)
    assert estimate(np.array([3, 0]), np.array([4, 0]), np.array([10, 10])) is None
    assert estimate(np.array([5]), np.array([8]), np.array([8])).more == 0  # no region is left


@pytest.mark.parametrize("stratified", [False, True])
def test_the_interval_covers_the_precision(stratified):
    rng, n, covered, middle = np.random.default_rng(0), 3000, 0, []
    score = rng.random(n)
    correct = rng.random(n) < 0.3 + 0.7 * score
    stratum = strata_of(score) if stratified else np.zeros(n, np.int64)
    size = np.bincount(stratum)
    for seed in range(400):
        rows = sample_order(draws(seed, "0", n), stratum)[:155]
        judged = np.bincount(stratum[rows], minlength=len(size))
        found = estimate(np.bincount(stratum[rows[correct[rows]]], minlength=len(size)), judged, size)
        covered += found.low <= correct.mean() <= found.high
        middle.append(found.precision)
    assert covered / 400 >= 0.93
    assert np.mean(middle) == pytest.approx(correct.mean(), abs=0.006)  # three standard errors: no bias
