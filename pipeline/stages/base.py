"""What all stages share: skip what is done, do the rest shard by shard, commit each, count everything."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError, RunError
from pipeline.io.commit import clear_temporaries, commit_report, committed
from pipeline.progress import Progress, Silent
from pipeline.stats import FailedShard, OutputFile, ShardReport, StageReport, Tally

if TYPE_CHECKING:
    from pipeline.io.tars import TarProblems  # webdataset brings torch along, which filter-boxes does without

log = logging.getLogger("glip_self_train")


MAX_NOTES = 10


@dataclass(frozen=True)
class ShardJob:
    """One shard to make: where it comes from, its name, and the fingerprint its output will carry."""

    path: str
    name: str
    fingerprint: str

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


Work = Callable[[ShardJob], ShardReport]
"""Makes a shard's outputs, each atomically, and returns its report (not yet committed)."""


def run_shards(
    stage: str,
    jobs: Sequence[ShardJob],
    out: str | Path,
    work: Work,
    *,
    progress: Progress | None = None,
    workers: int = 1,
    max_failed: int = 0,
) -> StageReport:
    """Run ``work`` on every shard that is not done yet and commit each result.

    A shard that raises is set aside with its reason while the rest go on. ``workers`` > 1 runs shards in spawned
    processes (``work`` must then be picklable).

    Raises:
        RunError: more than ``max_failed`` shards failed; the report so far is logged, what is done stays done.
    """
    progress = progress or Silent()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    clear_temporaries(out)
    progress.begin(stage, len(jobs))
    reports: dict[str, ShardReport] = {}
    failed: list[FailedShard] = []
    todo = []
    for job in jobs:
        done = committed(out, job.name, job.fingerprint)
        if done is None:
            todo.append(job)
        else:
            reports[job.name] = done
            progress.shard(done, skipped=True)
    skipped = len(reports)

    def finish(job: ShardJob, report: ShardReport) -> None:
        commit_report(out, report)
        reports[job.name] = report
        progress.shard(report, skipped=False)

    def fail(job: ShardJob, error: Exception) -> None:
        line = f"{type(error).__name__}: {error}" if not isinstance(error, InputError | RunError) else str(error)
        log.error(
            "%s: shard %s failed: %s",
            stage,
            job.path,
            line,
            exc_info=not isinstance(error, InputError | RunError),
        )
        failed.append(FailedShard(shard=job.name, error=line))

    if workers > 1 and len(todo) > 1:
        with ProcessPoolExecutor(min(workers, len(todo)), mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(work, job): job for job in todo}
            for future in as_completed(futures):
                job = futures[future]
                try:
                    finish(job, future.result())
                except Exception as error:
                    fail(job, error)
    else:
        for job in todo:
            try:
                finish(job, work(job))
            except Exception as error:
                fail(job, error)
    failed.sort(key=lambda f: f.shard)
    total = StageReport.of(stage, (reports[n] for n in sorted(reports)), skipped=skipped, failed=failed)
    progress.end(total)
    if len(failed) > max_failed:
        first = failed[0]
        raise RunError(
            f"{stage}: {len(failed)} of {len(jobs)} shards failed (allowed: {max_failed}); first: {first.shard}: {first.error}"
        )
    return total
