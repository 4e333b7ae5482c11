"""Parallel writing of many small files, which over a network is mostly latency."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.execution.prefetch import submit_ahead
from pipeline.io.atomic import write_atomic
from pipeline.io.paths import is_url, join
from pipeline.system.devices import cores

In = TypeVar("In")
Out = TypeVar("Out")
_QUEUED = 4
"""Maximum pending items per thread."""


def writer_threads(out: str) -> int:
    """Number of threads for writing files."""
    return 16 if is_url(out) else min(4, cores())


def ordered_map(work: Callable[[In], Out], items: Iterable[In], threads: int) -> Iterator[tuple[In, Out]]:
    """(item, work(item)) in order, computed in threads with a bounded number of items in flight."""
    pool = ThreadPoolExecutor(threads)
    try:
        for item, future in submit_ahead(pool, work, items, threads * _QUEUED):
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class ParallelWriter:
    """Writes files below ``out`` in threads."""

    def __init__(self, out: str) -> None:
        self._out, threads = out, writer_threads(out)
        self._pool, self._max_pending = ThreadPoolExecutor(threads), threads * _QUEUED
        self._pending: deque[Future[object]] = deque()

    def put(self, name: str, data: bytes) -> None:
        """Queue a file for writing. Raises the error of an earlier file."""
        self._pending.append(self._pool.submit(write_atomic, join(self._out, name), data, durable=False))
        while len(self._pending) > self._max_pending:
            self._pending.popleft().result()

    def drain(self) -> None:
        """Wait until all files are written. Raises the first error."""
        while self._pending:
            self._pending.popleft().result()
        self._pool.shutdown()
