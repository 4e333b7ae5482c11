"""Run a stage: skip shards that are done, share the rest among workers, commit each result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.execution.progress import Progress, Silent
from pipeline.execution.reports import StageReport
from pipeline.execution.worker import EachShard, ShardJob, Work, Worker

if TYPE_CHECKING:
    pass  # webdataset brings torch along, which filter-boxes does without


def run_shards(
    stage: str,
    jobs: Sequence[ShardJob],
    out: str | Path,
    work: Work,
    *,
    fingerprint_of: Callable[[ShardJob], str] | None = None,
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
        stage,
        jobs,
        out,
        [EachShard(work)] * workers,
        fingerprint_of=fingerprint_of,
        progress=progress,
        max_failed=max_failed,
    )


def run_workers(
    stage: str,
    jobs: Sequence[ShardJob],
    out: str | Path,
    workers: Sequence[Worker],
    *,
    fingerprint_of: Callable[[ShardJob], str] | None = None,
    progress: Progress | None = None,
    max_failed: int = 0,
    limit: int | None = None,
    price: float | None = None,
) -> StageReport:
    """Share the shards among workers, each in a process of its own (a single one in this process).

    Args:
        fingerprint_of: a job's fingerprint, asked for when its turn comes. limit: make at most so many shards now.
        price: of a device-hour, for the report's costs.

    Raises:
        RunError: as :func:`run_shards`.
    """
    from pipeline.execution.processes import run_in_processes
    from pipeline.execution.scheduler import ShardScheduler

    scheduler = ShardScheduler(
        stage, jobs, out, fingerprint_of=fingerprint_of, progress=progress or Silent(), limit=limit
    )
    started = time.monotonic()
    try:
        if len(workers) == 1:
            workers[0](scheduler)
        else:
            run_in_processes(workers, scheduler)
    finally:
        scheduler.rates.device_seconds = (time.monotonic() - started) * len(workers)
        report = scheduler.close(devices=len(workers), price=price, max_failed=max_failed)
    return report
