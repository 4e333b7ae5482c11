"""Batches: every query once, the same cut every time, like with like."""

import random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotators.base import TextQuery
from pipeline.annotators.batches import Item, batches

shapes = st.tuples(st.integers(32, 1333), st.integers(32, 1333))


def item(index: int, shape: tuple[int, int], tokens: int) -> Item:
    return Item(index, f"{index:09d}", b"", shape, shape, TextQuery("a dog", ((2, 5),), (0,), tokens))


@given(st.lists(st.tuples(shapes, st.integers(3, 256)), max_size=60), st.integers(1, 16))
def test_every_query_is_in_one_batch_of_bounded_size(found, size):
    items = [item(index, shape, tokens) for index, (shape, tokens) in enumerate(found)]
    cut = list(batches(items, size))
    assert sorted(i.index for batch in cut for i in batch) == list(range(len(items)))
    assert all(len(batch) == size for batch in cut[:-1]) and all(cut)
    assert len(cut) == -(-len(items) // size)


@given(st.lists(st.tuples(shapes, st.integers(3, 256)), max_size=40), st.randoms())
def test_the_order_of_arrival_does_not_matter(found, rng):
    items = [item(index, shape, tokens) for index, (shape, tokens) in enumerate(found)]
    shuffled = items.copy()
    rng.shuffle(shuffled)
    assert list(batches(items, 4)) == list(batches(shuffled, 4))


def test_little_of_a_batch_is_padding():
    rng = random.Random(0)
    sides = [(800, 1333), (1333, 800), (800, 800), (800, 1066)]
    items = [item(i, rng.choice(sides), rng.randint(5, 250)) for i in range(512)]

    def padded(cut) -> tuple[int, int]:
        pixels = sum(len(b) * max(i.shape[0] for i in b) * max(i.shape[1] for i in b) for b in cut)
        return pixels, sum(len(b) * max(i.query.tokens for i in b) for b in cut)

    pixels, tokens = padded(list(batches(items, 8)))
    real_pixels = sum(i.shape[0] * i.shape[1] for i in items)
    real_tokens = sum(i.query.tokens for i in items)
    assert pixels < 1.03 * real_pixels and tokens < 1.1 * real_tokens
    pixels, tokens = padded([items[i : i + 8] for i in range(0, 512, 8)])
    assert pixels > 1.5 * real_pixels and tokens > 1.5 * real_tokens  # what arrival order would cost
