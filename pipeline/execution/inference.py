"""Batched inference loop of a worker: read, decode, collate, predict and write shards concurrently.

Threads do all but the forward pass: reading waits for disks and networks, and PIL and Parquet's
writer release the GIL. The model runs on the calling thread, which should never wait.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from pipeline.errors import RunError
from pipeline.execution.options import DeviceOptions
from pipeline.execution.prefetch import Prefetcher
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.throughput import LIMIT
from pipeline.execution.worker import ShardJob, Worker, WorkQueue
from pipeline.system.devices import MAX_DECODERS, cores, devices_of, is_device_lost, limit_torch_threads

SHARDS_IN_HAND = 2
"""Shards that a worker reads ahead of its writer: one in the model and one being read. More would
be lost if the process is killed, and withheld from other workers.
"""

T = TypeVar("T")
Model = TypeVar("Model")
Unit = TypeVar("Unit")
Ready = TypeVar("Ready")
Batch = TypeVar("Batch")


class InferenceShard(Protocol[Unit, Ready, Batch]):
    """Inputs and results of one shard. Errors fail this shard alone, unless the device is lost."""

    def windows(self) -> Iterator[Sequence[Unit]]:
        """Yield bounded groups of units to decode. Called from the reading thread."""

    def prepare(self, unit: Unit) -> Ready:
        """Decode a unit. Called from several threads, in any order."""

    def collate(self, ready: Ready | None) -> Iterable[Batch]:
        """Return the batches that a unit completes; for None, those that the shard's end completes.

        Called from one thread, in the order of the units.
        """

    def predict(self, batch: Batch) -> int | Callable[[], int]:
        """Run the model on a batch. Returns the number of images that it completes.

        Or a function that waits for the model's results, stores them and returns that number: it is
        called from the storing thread, in order, while the model begins the next batch.
        """

    def finish(self) -> ShardReport:
        """Write the outputs, after the last batch. Called from the writing thread."""


@dataclass(frozen=True)
class InferenceWorker(Generic[Model]):
    """Worker (:data:`pipeline.execution.worker.Worker`) with one copy of a model.

    load: returns the model on a torch device. open_shard: called in the reading thread. decoders:
    number of decoding threads. threads: torch's CPU threads; None leaves torch's default.
    """

    load: Callable[[str], Model]
    open_shard: Callable[[Model, ShardJob], InferenceShard[Any, Any, Any]]
    device: str
    decoders: int
    threads: int | None

    def __call__(self, queue: WorkQueue) -> None:
        """Work until the queue has no more shards.

        Raises:
            InputError: the model cannot be used. torch.AcceleratorError: the device is lost.
        """
        with timed(queue, "load"):
            limit_torch_threads(self.threads)
            model = self.load(self.device)
        run_inference(queue, iter(queue.take, None), partial(self.open_shard, model), self.decoders)
        # of a model on a card with a known peak
        if (least := getattr(model, "least_seconds", None)) is not None and (seconds := least()) is not None:
            queue.spent(LIMIT, seconds)


def inference_workers(
    make: Callable[[str, int, int | None], Worker], options: DeviceOptions, jobs: int
) -> list[Worker]:
    """Return a worker for each process, at most one a job.

    Args:
        make: called with a process's device, number of decoding threads and torch threads.

    Raises:
        InputError: ``options.device`` is "cuda" and there is no GPU.
    """
    devices = devices_of(options.device, options.processes)
    share = max(1, cores() // len(devices))
    threads = share if len(devices) > 1 and "OMP_NUM_THREADS" not in os.environ else None
    return [make(name, options.decoders or min(MAX_DECODERS, share), threads) for name in devices[: max(1, jobs)]]


@contextmanager
def timed(queue: WorkQueue, part: str) -> Iterator[None]:
    """Report the seconds that a block takes as time of a part of the work, unless it raises."""
    started = time.monotonic()
    yield
    queue.spent(part, time.monotonic() - started)


def check_losses(job: ShardJob, unit: str, tally: Tally, allowed: float) -> None:
    """Raise a RunError if more than the share ``allowed`` of a shard's inputs was lost."""
    lost = sum(tally.dropped.values())
    if lost > allowed * max(tally.seen, 1):
        raise RunError(f"{job.path}: {lost} of {tally.seen} {unit} lost ({tally.dropped}); allowed share: {allowed}")


def run_inference(
    queue: WorkQueue, jobs: Iterator[ShardJob], open_shard: Callable[[ShardJob], InferenceShard[Any, Any, Any]],
    decoders: int,
) -> None:  # fmt: skip
    """Run the model on every shard, in order; results, progress and times go to the queue.

    Raises:
        torch.AcceleratorError: the device is lost; the process must end.
    """
    with ExitStack() as stack:
        loop = _Loop(queue, jobs, open_shard, stack.enter_context(ThreadPoolExecutor(1, "store")))
        pool = stack.enter_context(ThreadPoolExecutor(decoders, "decode"))
        writer = stack.enter_context(ThreadPoolExecutor(1, "write"))
        windows = stack.enter_context(Prefetcher(loop.windows(), 1, "read"))
        units = stack.enter_context(Prefetcher(loop.units(windows, pool), decoders, "plan"))
        batches = stack.enter_context(Prefetcher(loop.batches(units), 1, "collate"))
        writing: Future[None] = writer.submit(lambda: None)
        waited = time.monotonic()
        for running, batch in batches:
            queue.spent("wait", time.monotonic() - waited)
            if batch is not None:
                loop.predict(running, batch)
            else:
                loop.settle()
                loop.room.release()
                writing.result()  # at most one shard's results wait to be written
                writing = writer.submit(loop.finish, running)
            waited = time.monotonic()
        writing.result()


@dataclass
class _Running:
    """A shard in the loop. After an error the rest of its work is skipped."""

    job: ShardJob
    shard: Any = None
    error: Exception | None = None


Steps = Iterable[tuple[_Running, T | None]]
"""Items of shards, in order, and None at each shard's end."""


class _Loop:
    def __init__(
        self, queue: WorkQueue, jobs: Iterator[ShardJob], open_shard: Callable[[ShardJob], Any], storer: Executor
    ) -> None:
        self._queue, self._jobs, self._open_shard, self._storer = queue, jobs, open_shard, storer
        self._storing: tuple[_Running, Future[int]] | None = None
        self._stopped = False  # by a failure that concerns all shards
        self.room = threading.Semaphore(SHARDS_IN_HAND)

    def windows(self) -> Steps[Sequence[Any]]:
        while self.room.acquire() and not self._stopped and (job := next(self._jobs, None)) is not None:
            running = _Running(job)
            try:
                with timed(self._queue, "read"):
                    running.shard = self._open_shard(job)
                windows = running.shard.windows()
                while running.error is None and not self._stopped:
                    with timed(self._queue, "read"):
                        window = next(windows, None)
                    if window is None:
                        break
                    yield running, window
            except Exception as error:
                running.error = error
            yield running, None

    def units(self, windows: Steps[Sequence[Any]], pool: ThreadPoolExecutor) -> Steps[Future[Any]]:
        for running, window in windows:
            for unit in window or ():
                yield running, pool.submit(self._prepare, running, unit)
            if window is None:
                yield running, None

    def _prepare(self, running: _Running, unit: Any) -> Any:
        if running.error is None:
            with timed(self._queue, "decode"):
                return running.shard.prepare(unit)

    def batches(self, units: Steps[Future[Any]]) -> Steps[Any]:
        for running, unit in units:
            try:
                ready = None if unit is None else unit.result()
                for batch in running.shard.collate(ready) if running.error is None else ():
                    yield running, batch
            except Exception as error:
                running.error = error
            if unit is None:
                yield running, None

    def predict(self, running: _Running, batch: Any) -> None:
        if running.error is not None or self._stopped:
            return
        try:
            with timed(self._queue, "model"):
                result = running.shard.predict(batch)
        except Exception as error:
            self._fail(running, error)
        else:
            self.settle()  # at most one batch's results wait to be stored
            if callable(result):
                self._storing = running, self._storer.submit(result)
            else:
                self._queue.advance(result, "images")

    def settle(self) -> None:
        """Wait until the results of the batch before are stored."""
        if self._storing is None:
            return
        (running, storing), self._storing = self._storing, None
        try:
            with timed(self._queue, "model"):
                images = storing.result()
        except Exception as error:
            self._fail(running, error)
        else:
            self._queue.advance(images, "images")

    def _fail(self, running: _Running, error: Exception) -> None:
        running.error = error
        if is_device_lost(error):
            self.finish(running)

    def finish(self, running: _Running) -> None:
        if self._stopped:
            return
        try:
            if running.error is not None:
                raise running.error
            with timed(self._queue, "write"):
                report = running.shard.finish()
        except Exception as error:
            self._stopped = bool(self._queue.failed(running.job, error))
            if is_device_lost(error):
                raise  # this process can do no other shard
        else:
            self._queue.done(running.job, report)
