"""Many small files beside an export's own, written some at a time: each over a network is mostly waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from pipeline.io.atomic import write_atomic
from pipeline.io.paths import is_url, join
from pipeline.system.devices import cores

In = TypeVar("In")
Out = TypeVar("Out")
_AHEAD = 4
"""Pieces of work that wait, for each that is done."""


def writers(out: str) -> int:
    """How many files to write at a time."""
    return 16 if is_url(out) else min(4, cores())


def in_order(work: Callable[[In], Out], items: Iterable[In], threads: int) -> Iterator[tuple[In, Out]]:
    """Each item with what ``work`` makes of it, in their order; a bounded number of them is worked on ahead."""
    waiting = iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        ahead = deque((item, pool.submit(work, item)) for item in islice(waiting, threads * _AHEAD))
        while ahead:
            item, future = ahead.popleft()
            yield item, future.result()
            ahead.extend((item, pool.submit(work, item)) for item in islice(waiting, 1))
    finally:
        pool.shutdown(cancel_futures=True)


class Files:
    """Writes files below ``out``; :meth:`drain` says that all are there."""

    def __init__(self, out: str) -> None:
        self._out, threads = out, writers(out)
        self._pool, self._most = ThreadPoolExecutor(threads), threads * _AHEAD
        self._ahead: deque[Future[object]] = deque()

    def put(self, name: str, data: bytes) -> None:
        """Write a file, soon; raises what went wrong with an earlier one."""
        self._ahead.append(self._pool.submit(write_atomic, join(self._out, name), data, durable=False))
        while len(self._ahead) > self._most:
            self._ahead.popleft().result()

    def drain(self) -> None:
        """Wait for all files."""
        while self._ahead:
            self._ahead.popleft().result()
        self._pool.shutdown()
