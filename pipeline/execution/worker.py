"""What all stages share: skip what is done, do the rest shard by shard, commit each, count everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.execution.reports import ShardReport, Tally
from pipeline.io.atomic import OutputFile
from pipeline.system.devices import is_device_lost

if TYPE_CHECKING:
    from pipeline.io.tars import TarProblems  # webdataset brings torch along, which filter-boxes does without

MAX_NOTES = 10


@dataclass(frozen=True)
class ShardJob:
    """One shard to make: where it comes from, its name, and the fingerprint its output will carry.

    An empty fingerprint is worked out when the shard's turn comes (``fingerprint_of`` of :func:`run_shards`): it takes a look at
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


class WorkQueue(Protocol):
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


Worker = Callable[[WorkQueue], None]
"""Works on the queue's shards until it has no more."""
Work = Callable[[ShardJob], ShardReport]
"""Makes a shard's outputs, each atomically, and returns its report (not yet committed)."""


@dataclass(frozen=True)
class EachShard:
    """The plain worker: one shard after the other."""

    work: Work

    def __call__(self, queue: WorkQueue) -> None:
        while (job := queue.take()) is not None:
            try:
                report = self.work(job)
            except Exception as error:
                queue.failed(job, error)
                if is_device_lost(error):
                    raise
            else:
                queue.done(job, report)
