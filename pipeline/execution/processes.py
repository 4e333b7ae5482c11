"""Workers in child processes, connected to the scheduler in the parent by pipes."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

from pipeline.errors import InputError, RunError
from pipeline.execution.reports import ShardReport
from pipeline.execution.scheduler import LOOK_AGAIN, ShardScheduler
from pipeline.execution.stage_failures import stage_failure
from pipeline.execution.worker import ShardJob, Worker
from pipeline.system.parent_watch import exit_immediately

log = logging.getLogger("glip_self_train")


class _RemoteQueue:
    """WorkQueue of a child process: client of the parent's scheduler.

    A request for a shard waits for its response, which may take the digest of a large file.
    Messages have a pipe of their own and wait for none, so that reading ahead never delays the
    model. A request names their number, and is answered after them: no shard is given out after
    a failure that concerns all.
    """

    def __init__(self, requests: Connection, messages: Connection, out: str) -> None:
        self._requests, self._messages, self._out = requests, messages, out
        self._request_lock, self._message_lock = threading.Lock(), threading.Lock()
        self._sent = 0

    def take(self) -> ShardJob | None:
        while True:
            with self._request_lock:
                self._requests.send(self._sent)
                job: ShardJob | str | None = self._requests.recv()
            if not isinstance(job, str):
                return job
            time.sleep(LOOK_AGAIN)

    def _send(self, method: str, *arguments: Any) -> None:
        with self._message_lock:
            self._sent += 1
            self._messages.send((method, arguments))

    def done(self, job: ShardJob, report: ShardReport) -> None:
        self._send("done", job, report)

    def failed(self, job: ShardJob, error: BaseException | str) -> bool:
        error = (stage_wide := stage_failure(error, self._out)) or error
        if not isinstance(error, InputError | RunError | str):
            log.error("shard %s", job.path, exc_info=error)
            error = f"{type(error).__name__}: {error}"
        self._send("failed", job, error)
        return stage_wide is not None

    def advance(self, n: int, unit: str) -> None:
        self._send("advance", n, unit)

    def spent(self, part: str, seconds: float) -> None:
        self._send("spent", part, seconds)

    def broken(self, reason: str) -> None:
        """Send the reason why this process ends."""
        self._send("broken", reason)


def _run_child(worker: Worker, requests: Connection, messages: Connection, level: int, out: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(level)
    _exit_with_parent()
    queue = _RemoteQueue(requests, messages, out)
    try:
        worker(queue)
    except (EOFError, BrokenPipeError):
        pass  # the parent has died: the next run repeats what is not committed
    except Exception as error:
        log.debug("worker ended", exc_info=True)
        queue.broken(str(error) if isinstance(error, InputError | RunError) else f"{type(error).__name__}: {error}")


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Have processes started meanwhile leave Ctrl-C, which a terminal sends to all of its processes, to this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exit_with_parent() -> None:
    """Exit when the parent does, also when it is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        exit_immediately()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def run_in_processes(workers: Sequence[Worker], scheduler: ShardScheduler) -> None:
    """Run each worker in a spawned process, until the scheduler has no more shards.

    A process that dies (out of memory, a crash in a library) fails the shards that it held; the
    others do the rest.

    Raises:
        RunError: every process failed, so shards may be left.
    """
    children: list[_Child] = []
    for worker in workers:
        children.append(_Child(worker, scheduler, children))
    for child in children:
        child.wait()
    reasons = [child.reason for child in children if child.reason]
    if len(reasons) == len(children):
        raise RunError(f"every worker failed; first: {reasons[0]}")


class _Child:
    """A child process, and the parent's two threads that serve its requests and its messages."""

    def __init__(self, worker: Worker, scheduler: ShardScheduler, all_children: list[_Child]) -> None:
        """all_children: ended with this one by a failure that concerns all shards."""
        self.reason: str | None = None
        self._all = all_children
        self._scheduler = scheduler
        self._held: dict[str, ShardJob] = {}
        self._handled, self._news, self._ended = 0, threading.Condition(), False
        context = get_context("spawn")
        self._requests, requests = context.Pipe()
        self._messages, messages = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_run_child, args=(worker, requests, messages, log.getEffectiveLevel(), scheduler.out), daemon=True
        )
        with _interrupts_ignored():
            self._process.start()
        requests.close()
        messages.close()
        serve = (self._serve_requests, self._serve_messages)
        self._threads = [threading.Thread(target=target, daemon=True) for target in serve]
        for thread in self._threads:
            thread.start()

    def _serve_requests(self) -> None:
        with self._until_exit():
            while True:
                sent = self._requests.recv()
                with self._news:
                    while not self._ended and self._handled < sent:
                        self._news.wait()
                job = self._scheduler.offer()
                if isinstance(job, ShardJob):
                    self._held[job.name] = job
                self._requests.send(job)

    def _serve_messages(self) -> None:
        try:
            with self._until_exit():
                while True:
                    self._handle(*self._messages.recv())
                    with self._news:
                        self._handled += 1
                        self._news.notify_all()
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _handle(self, method: str, arguments: tuple[Any, ...]) -> None:
        if method == "broken":
            (self.reason,) = arguments
            return
        getattr(self._scheduler, method)(*arguments)
        if method in {"done", "failed"}:
            self._held.pop(arguments[0].name, None)
        if self._scheduler.stopped is not None:  # what they make would be lost
            for child in self._all:
                child._process.terminate()

    @contextmanager
    def _until_exit(self) -> Iterator[None]:
        """Serve until the process exits. Terminate it if the scheduler fails: it would hang."""
        try:
            yield
        except (EOFError, ConnectionError):
            pass
        except Exception as error:
            self.reason = f"its scheduler failed: {type(error).__name__}: {error}"
            log.exception("worker ended, as its scheduler failed")
            self._process.terminate()

    def wait(self) -> None:
        """Wait for the exit and the last messages; fail the shards that the process still held."""
        for thread in self._threads:
            thread.join()
        self._process.join()
        if self._process.exitcode and self.reason is None:
            self.reason = f"its process ended with code {self._process.exitcode}"
        for job in self._held.values():
            self._scheduler.failed(job, self.reason or "its process ended before it was done")
