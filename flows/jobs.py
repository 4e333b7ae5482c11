"""A task is a job: a child process on a chunk of shards. Retries redo one shard at most, as the commit is per shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait

from flows.artifacts import StageProgress, show_tallies
from flows.children import Job, run_child
from pipeline.errors import InputError
from pipeline.stats import StageReport

POLL_SECONDS = 2.0


async def _may_pass(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: not if the input is wrong."""
    return not isinstance(await state.aresult(raise_on_failure=False), InputError)


@task(
    cache_policy=NO_CACHE,  # whether work is done is decided by what lies in the store
    persist_result=False,
    retries=2,
    retry_delay_seconds=[3, 15],
    retry_condition_fn=_may_pass,
    task_run_name="{job.name}",
)
def run_job(job: Job) -> dict[str, Any] | None:
    """Run one job; returns its report."""
    if job.kept:
        from flows.on_ray import run_kept  # ray is an extra

        return run_kept(job)
    return run_child(job)


def run_jobs(title: str, jobs: Sequence[Job]) -> StageReport:
    """Run a stage's jobs, as many at a time as the flow's task runner allows; shows progress and what was dropped.

    Raises:
        InputError, RunError: of the first job that failed, once all have ended.
    """
    progress = StageProgress(title, jobs)
    futures: list[PrefectFuture[Any]] = [run_job.submit(job) for job in jobs]
    while True:
        waiting = wait(futures, timeout=POLL_SECONDS).not_done
        progress.update([f not in waiting for f in futures])
        if not waiting:
            break
    total = StageReport(stage=title)
    for future in futures:
        report = future.result()
        if report is not None:
            total.merge(StageReport.model_validate(report))
    show_tallies(title, total)
    return total
