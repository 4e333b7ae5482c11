"""Counts by hash are those of a plain Counter, and so are the most frequent texts, however few are kept in words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.inspection.phrase_counts
from pipeline.inspection.bins import BINS, FREQUENCIES
from pipeline.inspection.phrase_counts import TextCounts

SHARDS = st.lists(
    st.dictionaries(st.text("abcdé", min_size=1, max_size=3), st.integers(1, 50), max_size=30), max_size=8
)


@given(SHARDS, st.integers(1, 12), st.integers(1, 40))
def test_it_counts_as_a_counter_does(shards, kept, together):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.inspection.phrase_counts, "MERGE_ROWS", together)
        texts, expected = TextCounts(kept), Counter[str]()
        for shard in shards:
            texts.add(list(shard), np.array(list(shard.values()), np.int64))
            expected.update(shard)
        assert sorted(texts.counts.tolist()) == sorted(expected.values())
        top = texts.top(kept)
    assert all(expected[text] == n for text, n in top)
    # of equal ones any may be left out, but no frequent one for a rarer
    assert [n for _, n in top] == sorted(expected.values(), reverse=True)[:kept]
    assert top == sorted(top, key=lambda row: (-row[1], row[0]))


@given(SHARDS, st.randoms())
def test_the_order_of_the_shards_does_not_matter(shards, random):
    def top(order) -> list[tuple[str, int]]:
        texts = TextCounts(5)
        for shard in order:
            texts.add(list(shard), np.array(list(shard.values()), np.int64))
        return texts.top(5)

    assert top(shards) == top(random.sample(shards, len(shards)))


@pytest.mark.parametrize("bins", [*BINS.values(), FREQUENCIES])
def test_every_value_is_in_the_bin_that_is_named_for_it(bins):
    assert len(bins.edges) == len(bins.labels) and list(bins.edges) == sorted(bins.edges)
    for i, edge in enumerate(bins.edges):
        assert bins.count([edge])[i] == 1
        if i:
            assert bins.count([edge - 1e-9])[i - 1] == 1
    assert bins.count([bins.edges[-1] * 1000, bins.edges[0]]).sum() == 2
    assert bins.count([bins.edges[0]], np.array([7]))[0] == 7
