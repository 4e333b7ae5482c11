"""What all stages share: skip what is done, do the rest shard by shard, commit each, count everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.devices import is_gone
from pipeline.progress import Progress, Silent
from pipeline.stats import OutputFile, ShardReport, StageReport, Tally

if TYPE_CHECKING:
    from pipeline.io.tars import TarProblems  # webdataset brings torch along, which filter-boxes does without

MAX_NOTES = 10


@dataclass(frozen=True)
class ShardJob:
    """One shard to make: where it comes from, its name, and the fingerprint its output will carry.

    An empty fingerprint is worked out when the shard's turn comes (``mark`` of :func:`run_shards`): it takes a look at
    the inputs, which may be terabytes.
    """

    path: str
    name: str
    fingerprint: str = ""

    def report(
        self,
        stage: str,
        outputs: Mapping[str, OutputFile],
        tallies: Mapping[str, Tally],
        *,
        numbers: Mapping[str, float] | None = None,
        problems: TarProblems | None = None,
        notes: Sequence[str] = (),
    ) -> ShardReport:
        """What became of the shard; ``problems`` of reading it are added to its numbers and notes."""
        damage = {} if problems is None else {f"shard_{reason}": float(n) for reason, n in problems.counts.items()}
        return ShardReport(
            stage=stage,
            shard=self.name,
            fingerprint=self.fingerprint,
            outputs=dict(outputs),
            tallies=dict(tallies),
            numbers={**damage, **(numbers or {})},
            notes=[*(problems.notes if problems is not None else ()), *notes][:MAX_NOTES],
        )


class Desk(Protocol):
    """Where a worker gets its shards and hands in what became of them; in this process or another."""

    def take(self) -> ShardJob | None:
        """The next shard to do, or None when nothing is left."""
        ...

    def done(self, job: ShardJob, report: ShardReport) -> None:
        """Hand in a shard's report; its outputs are in place."""
        ...

    def failed(self, job: ShardJob, error: BaseException | str) -> None:
        """Set a shard aside with its reason."""
        ...

    def advance(self, n: int, unit: str) -> None:
        """Tell of progress within a shard."""
        ...

    def spent(self, part: str, seconds: float) -> None:
        """Count time that went into a part of the work."""
        ...


Worker = Callable[[Desk], None]
"""Works on the desk's shards until it has no more."""
Work = Callable[[ShardJob], ShardReport]
"""Makes a shard's outputs, each atomically, and returns its report (not yet committed)."""


@dataclass(frozen=True)
class EachShard:
    """The plain worker: one shard after the other."""

    work: Work

    def __call__(self, desk: Desk) -> None:
        while (job := desk.take()) is not None:
            try:
                report = self.work(job)
            except Exception as error:
                desk.failed(job, error)
                if is_gone(error):
                    raise
            else:
                desk.done(job, report)


def run_shards(
    stage: str,
    jobs: Sequence[ShardJob],
    out: str | Path,
    work: Work,
    *,
    mark: Callable[[ShardJob], str] | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    max_failed: int = 0,
) -> StageReport:
    """Run ``work`` on every shard that is not done yet and commit each result.

    A shard that raises is set aside with its reason while the rest go on. ``workers`` > 1 runs shards in spawned
    processes (``work`` must then be picklable). Runs that share ``out`` share the work.

    Raises:
        RunError: more than ``max_failed`` shards failed; the report so far is logged, what is done stays done.
    """
    workers = max(1, min(workers, len(jobs)))
    return run_workers(
        stage, jobs, out, [EachShard(work)] * workers, mark=mark, progress=progress, max_failed=max_failed
    )


def run_workers(
    stage: str,
    jobs: Sequence[ShardJob],
    out: str | Path,
    workers: Sequence[Worker],
    *,
    mark: Callable[[ShardJob], str] | None = None,
    progress: Progress | None = None,
    max_failed: int = 0,
    limit: int | None = None,
    price: float | None = None,
) -> StageReport:
    """Share the shards among workers, each in a process of its own (a single one in this process).

    Args:
        mark: a job's fingerprint, asked for when its turn comes. limit: make at most so many shards now.
        price: of a device-hour, for the report's costs.

    Raises:
        RunError: as :func:`run_shards`.
    """
    from pipeline.stages.ledger import Ledger
    from pipeline.stages.processes import run_in_processes

    ledger = Ledger(stage, jobs, out, mark=mark, progress=progress or Silent(), limit=limit)
    started = time.monotonic()
    try:
        if len(workers) == 1:
            workers[0](ledger)
        else:
            run_in_processes(workers, ledger)
    finally:
        ledger.rates.device_seconds = (time.monotonic() - started) * len(workers)
        report = ledger.close(devices=len(workers), price=price, max_failed=max_failed)
    return report
