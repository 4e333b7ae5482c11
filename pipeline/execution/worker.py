"""Interface between stages and the scheduler: shard jobs, workers and their queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.execution.reports import ShardReport, Tally
from pipeline.io.atomic import OutputFile
from pipeline.system.devices import is_device_lost

if TYPE_CHECKING:
    from pipeline.io.tars import TarProblems  # webdataset imports torch, which filter-boxes does not need

MAX_NOTES = 10


@dataclass(frozen=True)
class ShardJob:
    """One shard to process: path of its input, its name, and its output's fingerprint.

    An empty fingerprint is computed just before the work (``fingerprint_of`` of
    :func:`run_shards`), as that reads the inputs, which may be terabytes.
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
        """Return the shard's report; reading ``problems`` are added to numbers and notes."""
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


class WorkQueue(Protocol):
    """Source of a worker's shards and sink of their reports. Thread-safe."""

    def take(self) -> ShardJob | None:
        """Return the next shard, or None when nothing is left."""

    def done(self, job: ShardJob, report: ShardReport) -> None:
        """Commit a shard's report; its outputs are in place."""

    def failed(self, job: ShardJob, error: BaseException | str) -> bool:
        """Record a failed shard and its error. Returns whether the stage ends, as the error concerns all shards."""

    def advance(self, n: int, unit: str) -> None:
        """Report progress within a shard."""

    def spent(self, part: str, seconds: float) -> None:
        """Add seconds to the time of a part of the work."""


Worker = Callable[[WorkQueue], None]
"""Processes the queue's shards until none is left."""
Work = Callable[..., ShardReport]
"""Writes the outputs of a ShardJob, each atomically, and returns its report (not yet committed)."""


@dataclass(frozen=True)
class EachShard:
    """Call ``work(job)`` on each shard, with ``advances`` ``work(job, queue=queue)``."""

    work: Work
    advances: bool = False

    def __call__(self, queue: WorkQueue) -> None:
        while (job := queue.take()) is not None:
            try:
                report = self.work(job, queue=queue) if self.advances else self.work(job)
            except Exception as error:
                queue.failed(job, error)
                if is_device_lost(error):
                    raise
            else:
                queue.done(job, report)
