"""Work that runs ahead: everything arrives in order, errors arrive where they are awaited, closing lets go."""

import threading
import time

import pytest

from pipeline.execution.prefetch import Prefetcher


def test_items_come_in_order_and_at_most_so_many_ahead():
    taken, furthest = [], []

    def source():
        for i in range(50):
            furthest.append(i - len(taken))
            yield i

    with Prefetcher(source(), 3, "test") as ahead:
        for item in ahead:
            time.sleep(0.001)
            taken.append(item)
    assert taken == list(range(50))
    assert max(furthest) <= 3 + 2  # one in the maker's hand, one in the taker's


def test_an_error_arrives_after_what_came_before_it():
    def source():
        yield 1
        raise KeyError("no more")

    taken = []
    with pytest.raises(KeyError, match="no more"), Prefetcher(source(), 4, "test") as ahead:
        for item in ahead:
            taken.append(item)
    assert taken == [1]


def test_closing_stops_a_maker_that_waits_for_room():
    ended = threading.Event()

    def source():
        try:
            yield from range(10**9)
        finally:
            ended.set()

    with Prefetcher(source(), 1, "test") as ahead:
        assert next(iter(ahead)) == 0
    assert ended.wait(5)
