"""The batched inference loop of a worker: read, decode, collate, predict and write, each beside the others.

Threads do all but the forward pass: reading waits for disks and networks, PIL decodes and resizes
without Python's lock, and so does Parquet's writer. The model runs on the calling thread, which
should never wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from pipeline.errors import RunError
from pipeline.execution.prefetch import Prefetcher
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.worker import ShardJob, WorkQueue
from pipeline.system.devices import is_device_lost

SHARDS_IN_HAND = 2
"""One with the model, one being read: a process that is killed loses little, and leaves the others their share."""

T = TypeVar("T")
Unit = TypeVar("Unit")
Ready = TypeVar("Ready")
Batch = TypeVar("Batch")


class InferenceShard(Protocol[Unit, Ready, Batch]):
    """One shard's inputs and results. An error in a method fails this shard alone, unless the device is lost."""

    def windows(self) -> Iterator[Sequence[Unit]]:
        """Read the shard, a bounded part at a time, as units to decode. Called from the reading thread."""
        ...

    def prepare(self, unit: Unit) -> Ready:
        """Decode a unit. Called from several threads, in any order."""
        ...

    def collate(self, ready: Ready | None) -> Iterable[Batch]:
        """The batches that a unit completes; for None, those that the shard's end completes.

        Called from one thread, in the order of the units.
        """
        ...

    def predict(self, batch: Batch) -> int:
        """Run the model on a batch. Returns how many images are done with it."""
        ...

    def finish(self) -> ShardReport:
        """Write the outputs, after the last batch. Called from the writing thread."""
        ...


def run_inference(
    queue: WorkQueue,
    jobs: Iterator[ShardJob],
    open_shard: Callable[[ShardJob], InferenceShard[Unit, Ready, Batch]],
    decoders: int,
) -> None:
    """Run the model on every shard, in order; reports, failures, progress and times go to the queue.

    Args:
        jobs: advanced in the reading thread when there is room for another shard.
        open_shard: called in the reading thread. decoders: number of decoding threads.

    Raises:
        torch.AcceleratorError: the device is lost; the process must end.
    """
    _Loop(queue, jobs, open_shard, decoders).run()


@contextmanager
def timed(queue: WorkQueue, part: str) -> Iterator[None]:
    """Count the seconds of a block as a part of the work, unless it raises."""
    started = time.monotonic()
    yield
    queue.spent(part, time.monotonic() - started)


def check_losses(job: ShardJob, unit: str, tally: Tally, allowed: float) -> None:
    """Check that no more than a share of a shard's inputs is lost.

    Raises:
        RunError: more is lost.
    """
    lost = sum(tally.dropped.values())
    if lost > allowed * max(tally.seen, 1):
        raise RunError(f"{job.path}: {lost} of {tally.seen} {unit} lost ({tally.dropped}); allowed share: {allowed}")


class _Running:
    """A shard in the loop. Once it has an error, the rest of its work is skipped."""

    def __init__(self, job: ShardJob) -> None:
        self.job = job
        self.shard: InferenceShard[Any, Any, Any]
        self.error: Exception | None = None

    def guarded(self, source: Iterator[T]) -> Iterator[T]:
        """Yield from ``source``; an error in it becomes the shard's, and ends it."""
        while self.error is None:
            try:
                item = next(source)
            except StopIteration:
                return
            except Exception as error:
                self.error = error
                return
            yield item


Steps = Iterable[tuple[_Running, T | None]]
"""Parts of shards, and None at each shard's end."""


class _Loop:
    def __init__(
        self,
        queue: WorkQueue,
        jobs: Iterator[ShardJob],
        open_shard: Callable[[ShardJob], InferenceShard[Any, Any, Any]],
        decoders: int,
    ) -> None:
        self._queue, self._jobs, self._open_shard, self._decoders = queue, jobs, open_shard, decoders
        self._room = threading.Semaphore(SHARDS_IN_HAND)

    def run(self) -> None:
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self._decoders, "decode"))
            writer = stack.enter_context(ThreadPoolExecutor(1, "write"))
            windows = stack.enter_context(Prefetcher(self._windows(), 1, "read"))
            units = stack.enter_context(Prefetcher(self._units(windows, pool), self._decoders, "plan"))
            batches = stack.enter_context(Prefetcher(self._batches(units), 1, "collate"))
            writing: Future[None] | None = None
            waited = time.monotonic()
            for running, batch in batches:
                self._queue.spent("wait", time.monotonic() - waited)
                if batch is not None:
                    self._predict(running, batch)
                else:
                    self._room.release()
                    if writing is not None:
                        writing.result()  # one shard's results wait to be written, never more
                    writing = writer.submit(self._finish, running)
                waited = time.monotonic()
            if writing is not None:
                writing.result()

    def _windows(self) -> Steps[Sequence[Any]]:
        while True:
            self._room.acquire()
            job = next(self._jobs, None)
            if job is None:
                return
            running = _Running(job)
            for window in running.guarded(self._read(running)):
                yield running, window
            yield running, None

    def _read(self, running: _Running) -> Iterator[Sequence[Any]]:
        with timed(self._queue, "read"):
            running.shard = self._open_shard(running.job)
            windows = running.shard.windows()
        while True:
            with timed(self._queue, "read"):
                window = next(windows, None)
            if window is None:
                return
            yield window

    def _units(self, windows: Steps[Sequence[Any]], pool: ThreadPoolExecutor) -> Steps[Future[Any]]:
        for running, window in windows:
            for unit in window or ():
                yield running, pool.submit(self._prepare, running, unit)
            if window is None:
                yield running, None

    def _prepare(self, running: _Running, unit: Any) -> Any:
        if running.error is None:
            with timed(self._queue, "decode"):
                return running.shard.prepare(unit)

    def _batches(self, units: Steps[Future[Any]]) -> Steps[Any]:
        for running, unit in units:
            for batch in running.guarded(self._collate(running, unit)):
                yield running, batch
            if unit is None:
                yield running, None

    @staticmethod
    def _collate(running: _Running, unit: Future[Any] | None) -> Iterator[Any]:
        yield from running.shard.collate(None if unit is None else unit.result())

    def _predict(self, running: _Running, batch: Any) -> None:
        if running.error is not None:
            return
        try:
            with timed(self._queue, "model"):
                images = running.shard.predict(batch)
        except Exception as error:
            running.error = error
            if is_device_lost(error):
                self._queue.failed(running.job, error)
                raise
        else:
            self._queue.advance(images, "images")

    def _finish(self, running: _Running) -> None:
        try:
            if running.error is not None:
                raise running.error
            with timed(self._queue, "write"):
                report = running.shard.finish()
        except Exception as error:
            self._queue.failed(running.job, error)
            if is_device_lost(error):
                raise
        else:
            self._queue.done(running.job, report)
