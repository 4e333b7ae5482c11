"""Workers in processes of their own: the scheduler stays with the parent, shards and reports go through pipes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from pipeline.errors import InputError, RunError
from pipeline.execution.reports import ShardReport
from pipeline.execution.scheduler import LOOK_AGAIN, WAIT, ShardScheduler
from pipeline.execution.worker import ShardJob, Worker

log = logging.getLogger("glip_self_train")


class _FarDesk:
    """The parent's scheduler as a child sees it. Usable from any thread of the child.

    Asking for a shard waits for an answer, which may take the digest of a large file; telling does not wait, so the one
    who reads ahead never holds up the one who labels.
    """

    def __init__(self, asks: Connection, tells: Connection) -> None:
        self._asks, self._tells = asks, tells
        self._asking, self._telling = threading.Lock(), threading.Lock()

    def take(self) -> ShardJob | None:
        while True:
            with self._asking:
                self._asks.send("next")
                answer = self._asks.recv()
            if answer != WAIT:
                return answer
            time.sleep(LOOK_AGAIN)

    def _tell(self, name: str, *arguments: Any) -> None:
        with self._telling:
            self._tells.send((name, arguments))

    def done(self, job: ShardJob, report: ShardReport) -> None:
        self._tell("done", job, report)

    def failed(self, job: ShardJob, error: BaseException | str) -> None:
        if not isinstance(error, InputError | RunError | str):
            log.error("shard %s", job.path, exc_info=error)
            error = f"{type(error).__name__}: {error}"
        self._tell("failed", job, str(error))

    def advance(self, n: int, unit: str) -> None:
        self._tell("advance", n, unit)

    def spent(self, part: str, seconds: float) -> None:
        self._tell("spent", part, seconds)

    def broken(self, reason: str) -> None:
        """Say why this process ends."""
        self._tell("broken", reason)


def _child(worker: Worker, asks: Connection, tells: Connection, level: int) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(level)
    queue = _FarDesk(asks, tells)
    try:
        worker(queue)
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone: what is not committed will be made again
    except Exception as error:
        log.debug("worker ended", exc_info=True)
        queue.broken(str(error) if isinstance(error, InputError | RunError) else f"{type(error).__name__}: {error}")


def run_in_processes(workers: Sequence[Worker], scheduler: ShardScheduler) -> None:
    """Each worker in a spawned process, until the scheduler has no more shards.

    A process that dies (out of memory, a crash in a library) fails the shards that it held; the others go on with the rest.

    Raises:
        RunError: every process broke down, so shards may be left over.
    """
    children = [_Child(worker, scheduler) for worker in workers]
    for child in children:
        child.wait()
    reasons = [child.reason for child in children if child.reason]
    if len(reasons) == len(children):
        raise RunError(f"every worker broke down; first: {reasons[0]}")


class _Child:
    """One process, and the two threads that answer it and listen to it."""

    def __init__(self, worker: Worker, scheduler: ShardScheduler) -> None:
        self.reason: str | None = None
        self._scheduler = scheduler
        self._held: dict[str, ShardJob] = {}
        context = get_context("spawn")
        self._asks, theirs = context.Pipe()
        self._tells, told = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_child, args=(worker, theirs, told, log.getEffectiveLevel()), daemon=True
        )
        self._process.start()
        theirs.close()
        told.close()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._answer, self._listen)]
        for thread in self._threads:
            thread.start()

    def _answer(self) -> None:
        with self._until_its_end():
            while True:
                self._asks.recv()
                given = self._scheduler.offer()
                if isinstance(given, ShardJob):
                    self._held[given.name] = given
                self._asks.send(given)

    def _listen(self) -> None:
        with self._until_its_end():
            while True:
                name, arguments = self._tells.recv()
                if name == "broken":
                    (self.reason,) = arguments
                    continue
                getattr(self._scheduler, name)(*arguments)
                if name in {"done", "failed"}:
                    self._held.pop(arguments[0].name, None)

    @contextmanager
    def _until_its_end(self) -> Iterator[None]:
        """While the process is there. If it cannot be served it is ended: it would wait for ever, and the stage with it."""
        try:
            yield
        except (EOFError, ConnectionError):
            pass
        except Exception as error:
            self.reason = f"its scheduler failed: {type(error).__name__}: {error}"
            log.exception("worker ended, as its scheduler failed")
            self._process.terminate()

    def wait(self) -> None:
        """Until the process has ended and all that it told is dealt with."""
        for thread in self._threads:
            thread.join()
        self._process.join()
        if self._process.exitcode and self.reason is None:
            self.reason = f"its process ended with code {self._process.exitcode}"
        for job in self._held.values():
            self._scheduler.failed(job, self.reason or "its process ended before it was done")
