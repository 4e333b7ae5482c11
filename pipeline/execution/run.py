"""Run a stage: skip shards that are done, distribute the rest over workers, commit each result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.execution.options import LabellingOptions, RunOptions, ShardOptions
from pipeline.execution.processes import run_in_processes
from pipeline.execution.reports import StageReport
from pipeline.execution.scheduler import ShardScheduler
from pipeline.execution.worker import EachShard, ShardJob, Work, Worker


def run_shards(
    stage: str,
    jobs: Sequence[ShardJob],
    out: str | Path,
    work: Work,
    options: ShardOptions = ShardOptions(),
    *,
    fingerprint_of: Callable[[ShardJob], str] | None = None,
    advances: bool = False,
) -> StageReport:
    """Run ``work`` on every shard that is not done yet and commit each result.

    A shard that raises is recorded as failed and the rest continue. ``options.workers`` > 1 runs
    shards in spawned processes (``work`` must then be picklable). Runs with the same ``out`` share
    the work. With ``advances``, ``work`` also gets the ``queue``, to report progress within a
    shard.

    Raises:
        StageError: a failure concerns all shards, such as a full disk; those that were done stay done.
        RunError: more than ``max_failed`` shards failed; the others stay done.
        WorkLeft: ``options.check_only`` is set, and a shard is not done.
    """
    workers = [EachShard(work, advances)] * max(1, min(options.workers, len(jobs)))
    return run_workers(stage, jobs, out, workers, options, fingerprint_of=fingerprint_of)


def run_workers(
    stage: str,
    jobs: Sequence[ShardJob],
    out: str | Path,
    workers: Sequence[Worker],
    options: RunOptions = RunOptions(),
    *,
    fingerprint_of: Callable[[ShardJob], str] | None = None,
) -> StageReport:
    """Distribute the shards over workers, each in its own process (a single one in this process).

    Args:
        fingerprint_of: returns a shard's fingerprint; called just before its work, for jobs without
            one.

    Raises:
        StageError, RunError, WorkLeft: as :func:`run_shards`.
    """
    limit, price = (options.limit, options.price) if isinstance(options, LabellingOptions) else (None, None)
    scheduler = ShardScheduler(stage, jobs, out, fingerprint_of=fingerprint_of, progress=options.progress, limit=limit)
    if options.check_only:
        workers = ()
    started = time.monotonic()
    try:
        if options.check_only:
            scheduler.check()
        else:
            scheduler.check_output()
        if len(workers) == 1:
            workers[0](scheduler)
        elif workers:
            run_in_processes(workers, scheduler)
    finally:
        scheduler.rates.device_seconds = (time.monotonic() - started) * len(workers)
        report = scheduler.close(devices=len(workers), price=price, max_failed=options.max_failed)
    return report
