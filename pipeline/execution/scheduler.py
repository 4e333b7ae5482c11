"""Thread-safe scheduler of a stage's shards: skips, claims and commits them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.errors import InputError, RunError, StageError
from pipeline.execution.claims import Claims, clear_claims
from pipeline.execution.commit import commit_report, committed
from pipeline.execution.options import WorkLeft
from pipeline.execution.progress import Progress
from pipeline.execution.reports import FailedShard, ShardReport, StageReport
from pipeline.execution.stage_failures import stage_failure
from pipeline.execution.throughput import Rates
from pipeline.execution.worker import ShardJob
from pipeline.io.files import StoreError, check_writable, file_size
from pipeline.io.paths import is_url, no_folder
from pipeline.io.temporaries import clear_temporaries

log = logging.getLogger("glip_self_train")

LOOK_AGAIN = 1.0
"""Seconds between checks of shards that another run has claimed."""
WAIT = "wait"
"""Returned by :meth:`ShardScheduler.offer` while other runs hold every shard that is left."""


class ShardScheduler:
    """Queue of the shards that are not done (:class:`pipeline.execution.worker.WorkQueue`).

    A shard that is committed for its fingerprint is skipped. One that another run has claimed is
    checked again when no other is left: by then it is done, or its claim has expired and this run
    takes it.
    """

    def __init__(
        self,
        stage: str,
        jobs: Sequence[ShardJob],
        out: str | Path,
        *,
        fingerprint_of: Callable[[ShardJob], str] | None = None,
        progress: Progress,
        limit: int | None = None,
    ) -> None:
        self.stage, self.out, self._fingerprint_of, self._progress = stage, str(out), fingerprint_of, progress
        self._pending: deque[ShardJob] = deque(jobs)
        self._claimed: deque[ShardJob] = deque()  # by other runs
        self._rechecking = 0
        self._quota = self._limit = limit
        self._reports: dict[str, ShardReport] = {}
        self._skipped: set[str] = set()
        self._failed: list[FailedShard] = []
        self._refused = False  # by a store, the shard before
        self.stopped: StageError | None = None
        self._lock = threading.Lock()
        self._total = len(jobs)
        self._paths = {job.name: job.path for job in jobs}
        self.rates = Rates()
        if not is_url(out):
            try:
                Path(out).mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise InputError(no_folder(out)) from None
        clear_temporaries(out)
        clear_claims(out)
        self._claims = Claims(out)
        progress.begin(stage, len(jobs))

    def check_output(self) -> None:
        """Raise StageError if a shard is not done and nothing can be written to the output folder."""
        try:
            check_writable(self.out)
        except OSError as error:
            try:
                self.check()
            except WorkLeft:
                raise StageError(f"{self.stage}: {self.out}: {error.strerror}; nothing was started") from None

    def check(self) -> None:
        """Raise WorkLeft if a shard is not committed for its fingerprint."""
        while self._pending:
            job = self._with_fingerprint(self._pending.popleft())
            if not self._done_before(job):
                raise WorkLeft

    def take(self) -> ShardJob | None:
        """Claim the next shard; None when nothing is left. Waits while other runs hold the rest."""
        while isinstance(job := self.offer(), str):
            time.sleep(LOOK_AGAIN)
        return job

    def offer(self) -> ShardJob | str | None:
        """As :meth:`take`, but return WAIT instead of waiting."""
        while True:
            with self._lock:
                if not self._pending:
                    break
                job = self._pending.popleft()
            if self.stopped is None and (given := self._try(job)) is not None:
                return given
        for _ in range(len(self._claimed)):  # at most: other threads may take some meanwhile
            with self._lock:
                if not self._claimed:
                    break
                job = self._claimed.popleft()
                self._rechecking += 1
            try:
                given = None if self.stopped else self._try(job)
            finally:
                with self._lock:
                    self._rechecking -= 1
            if given is not None:
                return given
        with self._lock:
            return WAIT if self._claimed or self._rechecking else None

    def _try(self, job: ShardJob) -> ShardJob | None:
        """Return the job if it is claimed now; else record it as skipped, failed or claimed."""
        try:
            job = self._with_fingerprint(job)
            if self._done_before(job):
                return None
            with self._lock:
                if self._quota == 0:
                    return None
                if self._quota is not None:  # before the claim, or several threads would use the last one
                    self._quota -= 1
            given = False
            try:
                if not self._claims.take(job.name):
                    with self._lock:
                        self._claimed.append(job)
                elif self._done_before(job):  # by the run that has just released it
                    self._release(job.name)
                else:
                    given = True
            finally:
                if not given and self._quota is not None:
                    with self._lock:
                        self._quota += 1
        except Exception as error:
            self.failed(job, error)
            return None
        return job if given else None

    def _with_fingerprint(self, job: ShardJob) -> ShardJob:
        if job.fingerprint:
            return job
        assert self._fingerprint_of is not None
        return replace(job, fingerprint=self._fingerprint_of(job))

    def _done_before(self, job: ShardJob) -> bool:
        report = committed(self.out, job.name, job.fingerprint)
        if report is None:
            return False
        with self._lock:
            self._reports[job.name] = report
            self._skipped.add(job.name)
            with self._tolerate("progress not reported"):
                self._progress.shard(report, skipped=True)
        return True

    @contextmanager
    def _tolerate(self, what: str) -> Iterator[None]:
        """Log an error of reporting progress or releasing a claim: no shard fails for it."""
        try:
            yield
        except Exception as error:
            log.warning("%s: %s: %s: %s", self.stage, what, type(error).__name__, error)

    def _release(self, name: str) -> None:
        with self._tolerate(f"claim of shard {name} not released"):  # it expires, or the next run clears it
            self._claims.release(name)

    def done(self, job: ShardJob, report: ShardReport) -> None:
        try:
            commit_report(self.out, report)
        except Exception as error:
            self.failed(job, error)
            return
        self._release(job.name)
        with self._lock:
            self._refused = False
            self._reports[job.name] = report
            with self._tolerate("progress not reported"):
                self._progress.shard(report, skipped=False)

    def failed(self, job: ShardJob, error: BaseException | str) -> bool:
        with self._lock:
            if self.stopped is None:
                self.stopped = self._stage_failure(error)
        if self.stopped is not None:  # reported once, by close; the shard is left, not failed
            self._release(job.name)
            return True
        expected = isinstance(error, InputError | RunError | str)
        line = str(error) if expected else f"{type(error).__name__}: {error}"
        trace = None if expected else error
        log.error("%s: shard %s failed: %s", self.stage, job.path, line, exc_info=trace)  # type: ignore[arg-type]
        if self._has_old_result(job):
            log.warning(
                "%s: %s still holds the previous output of shard %s, of other settings or another input",
                self.stage, self.out, job.name,
            )  # fmt: skip
        with self._lock:
            self._failed.append(FailedShard(shard=job.name, error=line))
        self._release(job.name)
        return False

    def _stage_failure(self, error: BaseException | str) -> StageError | None:
        """The failure of the whole stage. A store that refuses two shards in a row would refuse the others too."""
        if (found := stage_failure(error, self.out)) is not None:
            return found
        refused, self._refused = self._refused, isinstance(error, StoreError) and error.refused
        return StageError(str(error)) if refused and self._refused else None

    def _has_old_result(self, job: ShardJob) -> bool:
        """Whether a failed shard still has output of other settings, which is kept."""
        try:
            return bool(job.fingerprint) and committed(self.out, job.name) is not None
        except Exception:
            return False

    def advance(self, n: int, unit: str) -> None:
        with self._lock:
            self.rates.samples += n
            self.rates.unit = unit
            with self._tolerate("progress not reported"):
                self._progress.advance(n, unit)

    def spent(self, part: str, seconds: float) -> None:
        with self._lock:
            self.rates.parts[part] = self.rates.parts.get(part, 0.0) + seconds

    def close(self, *, devices: int, price: float | None, max_failed: int) -> StageReport:
        """Release the claims and return the stage's report.

        Raises:
            StageError: a failure concerned all shards.
            RunError: more than ``max_failed`` shards failed; the others stay done.
        """
        if self.stopped is None:
            self._claims.close()
        else:
            with self._tolerate("claims not released"):
                self._claims.close()
        self._failed.sort(key=lambda f: f.shard)
        reports = [self._reports[name] for name in sorted(self._reports)]
        total = StageReport.of(self.stage, reports, skipped=len(self._skipped), failed=self._failed)
        self._measure(devices, price)
        total.rates = self.rates
        self._progress.end(total)
        if self.stopped is not None:
            raise StageError(
                f"{self.stage}: {self.stopped}. It concerns all shards, so the stage ended: {len(self._reports)} of "
                f"{self._total} are done, and the same command does the rest once that is mended"
            )
        if len(self._failed) > max_failed:
            first = self._failed[0]
            raise RunError(
                f"{self.stage}: {len(self._failed)} of {self._total} shards failed (allowed: {max_failed}); "
                f"first: {first.shard}: {first.error}"
            )
        return total

    def _measure(self, devices: int, price: float | None) -> None:
        """Complete the rates: devices, and bytes of the input done and left."""
        self.rates.devices, self.rates.price = devices, price
        failed = {f.shard for f in self._failed}
        left = [n for n in self._paths if n not in self._reports and n not in failed]
        done = [n for n in self._reports if n not in self._skipped]
        self.rates.shards_left = len(left)
        if done and (left or self._limit is not None):
            self.rates.bytes_done = sum(file_size(self._paths[n]) or 0 for n in done)
            self.rates.bytes_left = sum(file_size(self._paths[n]) or 0 for n in left)
