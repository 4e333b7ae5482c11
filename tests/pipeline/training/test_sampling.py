"""The order of records: every record once an epoch, shares exact, all a function of (seed, place)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.training.sampling import PERIOD, Mixture, SourceOrder


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(sum),
    seed=st.integers(0, 5),
    block=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_every_record_once(counts, seed, block):
    order = SourceOrder(counts, seed=seed, name="a", block=block)
    everything = {(s, r) for s, n in enumerate(counts) for r in range(n)}
    for epoch in range(2):
        places = [order.locate(epoch * order.total + i) for i in range(order.total)]
        assert len(places) == len(everything) and set(places) == everything


def test_order_depends_on_seed_name_and_epoch_but_not_on_how_it_is_read():
    def read(seed=0, name="a", places=range(60)):
        order = SourceOrder([10, 20, 30], seed=seed, name=name, block=2)
        return [order.locate(i) for i in places]

    assert read() == read()
    assert read() != read(seed=1)
    assert read() != read(name="b")
    assert read(places=range(60, 120)) != read()
    assert read(places=reversed(range(60))) == read()[::-1]  # jumping about changes nothing


@given(counts=st.lists(st.integers(0, 7), min_size=1, max_size=9).filter(sum), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_any_record_is_drawn_as_often_as_any_other(counts, seed):
    order = SourceOrder(counts, seed=seed, name="a")
    everything = [(s, r) for s, n in enumerate(counts) for r in range(n)]
    drawn = Counter(map(order.draw, [np.random.default_rng([seed, i]) for i in range(200 * order.total)]))
    assert set(drawn) == set(everything) and max(drawn.values()) < 300 and min(drawn.values()) > 110


def test_drawing_a_record_shuffles_nothing():
    order, rng = SourceOrder([50] * 400, seed=0, name="a"), np.random.default_rng(0)
    first = [order.locate(i) for i in range(20)]
    made = order._rows._value.cache_info().misses
    for i in range(20):
        order.draw(rng)
        assert order.locate(i) == first[i]
    assert order._rows._value.cache_info().misses == made  # what the main stream reads stayed where it was


@given(
    shares=st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 10), min_size=1),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_a_mixture_holds_its_shares_and_counts_each_source_without_gaps(shares, seed):
    mixture = Mixture(shares, sorted(shares), seed=seed)
    seen: dict[str, list[int]] = {s: [] for s in shares}
    for place in range(2 * PERIOD):
        source, n = mixture.locate(place)
        seen[source].append(n)
    for source, numbers in seen.items():
        assert sorted(numbers) == list(range(len(numbers)))
        expected = 2 * PERIOD * shares[source] / sum(shares.values())
        assert abs(len(numbers) - expected) <= 2


def test_wrong_mixtures_are_refused_by_name():
    with pytest.raises(InputError, match=r"\['gold'\].*\['gold', 'pseudo'\]"):
        Mixture({"gold": 1}, ["gold", "pseudo"], seed=0)
    with pytest.raises(InputError, match="above 0"):
        Mixture({"gold": 1, "pseudo": 0}, ["gold", "pseudo"], seed=0)
    with pytest.raises(InputError, match="never be drawn"):
        Mixture({"gold": 1, "pseudo": 1e-6}, ["gold", "pseudo"], seed=0)
    with pytest.raises(InputError, match="no records"):
        SourceOrder([0, 0], seed=0, name="empty")


def test_shares_default_to_equal():
    mixture = Mixture({}, ["a", "b"], seed=3)
    assert Counter(mixture.locate(i)[0] for i in range(PERIOD)) == {"a": PERIOD // 2, "b": PERIOD // 2}
