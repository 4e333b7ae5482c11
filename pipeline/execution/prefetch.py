"""Work that runs ahead of the one who waits for it, by a stated number of steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_LOOK = 0.1


class Prefetcher(Generic[T]):
    """Iterates ``source`` in a thread of its own, at most ``depth`` items ahead. Close it, or use it in ``with``.

    What ``source`` raises is raised where the items are taken. Closing stops it at its next item.
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
                self._items.put((kind, item), timeout=_LOOK)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        while not self._closed.is_set():
            try:
                kind, item = self._items.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(item, BaseException)
                raise item
            yield item  # type: ignore[misc]

    def close(self) -> None:
        """Stop, and let whoever takes or gives go."""
        self._closed.set()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
