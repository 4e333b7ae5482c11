"""Which shards are to do, whose they are, and what became of each: shared by all that work on a stage at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import InputError, RunError
from pipeline.execution.claims import Claims, clear_claims
from pipeline.execution.commit import commit_report, committed
from pipeline.execution.options import WorkLeft
from pipeline.execution.progress import Progress
from pipeline.execution.reports import FailedShard, ShardReport, StageReport
from pipeline.execution.throughput import Rates
from pipeline.execution.worker import ShardJob
from pipeline.io.files import file_size
from pipeline.io.paths import is_url
from pipeline.io.temporaries import clear_temporaries

log = logging.getLogger("glip_self_train")

LOOK_AGAIN = 1.0
"""Seconds between looks at shards that another run is working on."""
WAIT = "wait"
"""Nothing to hand out now, but there may be later."""


class ShardScheduler:
    """Hands out the shards that are not done, commits what comes back. Usable from any thread.

    A shard that is committed for its fingerprint is skipped; one that another run has claimed is left to it, and looked
    at again when nothing else is left: by then it is done, or its claim is void and it is ours.
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
        self.stage, self._out, self._fingerprint_of, self._progress = stage, str(out), fingerprint_of, progress
        self._pending: deque[ShardJob] = deque(jobs)
        self._busy: deque[ShardJob] = deque()
        self._looked_at = 0
        self._room = self._limit = limit
        self._reports: dict[str, ShardReport] = {}
        self._skipped: set[str] = set()
        self._failed: list[FailedShard] = []
        self._lock = threading.Lock()
        self._total = len(jobs)
        self._paths = {job.name: job.path for job in jobs}
        self.rates = Rates()
        if not is_url(out):
            Path(out).mkdir(parents=True, exist_ok=True)
        clear_temporaries(out)
        clear_claims(out)
        self._claims = Claims(out)
        progress.begin(stage, len(jobs))

    def check(self) -> None:
        """Look at every shard's output and make none.

        Raises:
            WorkLeft: a shard is not committed for its fingerprint.
        """
        while self._pending:
            job = self._with_fingerprint(self._pending.popleft())
            if not self._done_before(job):
                raise WorkLeft

    # --- for those who work

    def take(self) -> ShardJob | None:
        """The next shard to do, claimed; None when nothing is left. Waits while other runs hold what is left."""
        while (given := self.offer()) == WAIT:
            time.sleep(LOOK_AGAIN)
        return given if isinstance(given, ShardJob) else None

    def offer(self) -> ShardJob | str | None:
        """As :meth:`take`, but WAIT instead of waiting."""
        while True:
            with self._lock:
                if not self._pending:
                    break
                job = self._pending.popleft()
            if (given := self._try(job)) is not None:
                return given
        for _ in range(len(self._busy)):  # at most: others may look at some of them meanwhile
            with self._lock:
                if not self._busy:
                    break
                job = self._busy.popleft()
                self._looked_at += 1
            try:
                given = self._try(job)
            finally:
                with self._lock:
                    self._looked_at -= 1
            if given is not None:
                return given
        with self._lock:
            return WAIT if self._busy or self._looked_at else None

    def _try(self, job: ShardJob) -> ShardJob | None:
        """Skip it, put it back, or claim it."""
        try:
            job = self._with_fingerprint(job)
            if self._done_before(job):
                return None
            with self._lock:
                if self._room == 0:
                    return None
                if self._room is not None:  # before the claim, or several threads would take the last place
                    self._room -= 1
            given = False
            try:
                if not self._claims.take(job.name):
                    with self._lock:
                        self._busy.append(job)
                elif self._done_before(job):  # by the run that has just given it up
                    self._give_up(job.name)
                else:
                    given = True
            finally:
                if not given and self._room is not None:
                    with self._lock:
                        self._room += 1
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
        report = committed(self._out, job.name, job.fingerprint)
        if report is None:
            return False
        with self._lock:
            self._reports[job.name] = report
            self._skipped.add(job.name)
            self._show(lambda: self._progress.shard(report, skipped=True))
        return True

    def _show(self, tell: Callable[[], None]) -> None:
        """Progress is for people: where it cannot be told, no shard fails for it."""
        try:
            tell()
        except Exception as error:
            log.warning("%s: progress not told: %s: %s", self.stage, type(error).__name__, error)

    def _give_up(self, name: str) -> None:
        """A claim that cannot be given up lapses, or is cleared by who comes next; the shard is dealt with all the same."""
        try:
            self._claims.release(name)
        except Exception as error:
            log.warning("%s: claim of shard %s not given up: %s: %s", self.stage, name, type(error).__name__, error)

    def done(self, job: ShardJob, report: ShardReport) -> None:
        """Commit a shard's report; its outputs are in place."""
        try:
            commit_report(self._out, report)
        except Exception as error:
            self.failed(job, error)
            return
        self._give_up(job.name)
        with self._lock:
            self._reports[job.name] = report
            self._show(lambda: self._progress.shard(report, skipped=False))

    def failed(self, job: ShardJob, error: BaseException | str) -> None:
        """Set a shard aside with its reason."""
        expected = isinstance(error, InputError | RunError | str)
        line = str(error) if expected else f"{type(error).__name__}: {error}"
        trace = None if expected else error
        log.error("%s: shard %s failed: %s", self.stage, job.path, line, exc_info=trace)  # type: ignore[arg-type]
        if self._has_old_result(job):
            log.warning(
                "%s: %s still holds what shard %s gave before, under other settings or of another input",
                self.stage,
                self._out,
                job.name,
            )
        with self._lock:
            self._failed.append(FailedShard(shard=job.name, error=line))
        self._give_up(job.name)

    def _has_old_result(self, job: ShardJob) -> bool:
        """It stays, for settings that do not work must not cost what others gave; who reads the folder should know."""
        try:
            return bool(job.fingerprint) and committed(self._out, job.name) is not None
        except Exception:
            return False

    def advance(self, n: int, unit: str) -> None:
        """Tell of progress within a shard."""
        with self._lock:
            self.rates.samples += n
            self.rates.unit = unit
            self._show(lambda: self._progress.advance(n, unit))

    def spent(self, part: str, seconds: float) -> None:
        """Count time that went into a part of the work."""
        with self._lock:
            self.rates.parts[part] = self.rates.parts.get(part, 0.0) + seconds

    # --- for the one who started it

    def close(self, *, devices: int, price: float | None, max_failed: int) -> StageReport:
        """The sum of it all.

        Raises:
            RunError: more than ``max_failed`` shards failed; what is done stays done.
        """
        self._claims.close()
        self._failed.sort(key=lambda f: f.shard)
        reports = [self._reports[name] for name in sorted(self._reports)]
        total = StageReport.of(self.stage, reports, skipped=len(self._skipped), failed=self._failed)
        self._measure(devices, price)
        total.rates = self.rates
        self._progress.end(total)
        if len(self._failed) > max_failed:
            first = self._failed[0]
            raise RunError(
                f"{self.stage}: {len(self._failed)} of {self._total} shards failed (allowed: {max_failed}); "
                f"first: {first.shard}: {first.error}"
            )
        return total

    def _measure(self, devices: int, price: float | None) -> None:
        """How much of the input is done now, and how much is left."""
        self.rates.devices, self.rates.price = devices, price
        failed = {f.shard for f in self._failed}
        left = [n for n in self._paths if n not in self._reports and n not in failed]
        made = [n for n in self._reports if n not in self._skipped]
        self.rates.shards_left = len(left)
        if made and (left or self._limit is not None):
            self.rates.bytes_done = sum(file_size(self._paths[n]) or 0 for n in made)
            self.rates.bytes_left = sum(file_size(self._paths[n]) or 0 for n in left)
