"""Work ahead of a consumer, within bounds: an iterator in a background thread, or calls in a pool."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")
_POLL = 0.1
"""Seconds between checks for a closed prefetcher."""


def submit_ahead(
    pool: Executor, work: Callable[[In], Out], items: Iterable[In], ahead: int
) -> Iterator[tuple[In, Future[Out]]]:
    """(item, future of work(item)) in order; at most ``ahead`` futures are in flight."""
    remaining = iter(items)
    pending = deque((item, pool.submit(work, item)) for item in islice(remaining, ahead))
    while pending:
        yield pending.popleft()
        pending.extend((item, pool.submit(work, item)) for item in islice(remaining, 1))


class Prefetcher(Generic[T]):
    """Iterate ``source`` in a thread, up to ``depth`` items ahead. Close it, or use it in ``with``.

    An error of ``source`` is raised to the consumer, after the items before it. Closing stops
    ``source`` at its next item.
    """

    def __init__(self, source: Iterable[T], depth: int, name: str) -> None:
        self._items: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name=name, daemon=True)
        self._thread.start()

    def _run(self, source: Iterable[T]) -> None:
        try:
            for item in source:
                if not self._put("item", item):
                    return
            self._put("end", None)
        except BaseException as error:
            self._put("error", error)

    def _put(self, kind: str, item: T | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._items.put((kind, item), timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        while not self._closed.is_set():
            try:
                kind, item = self._items.get(timeout=_POLL)
            except queue.Empty:
                continue
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(item, BaseException)
                raise item
            yield item  # type: ignore[misc]

    def close(self) -> None:
        """Stop the thread and a waiting consumer."""
        self._closed.set()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
