"""Prefect tasks of a stage: each runs one job, a child process on a chunk of shards.

A failed shard does not fail its neighbours. It is tried again with the task, which redoes only the
uncommitted shards, and is then excluded with its reason. ``resources.max_failed`` limits how many shards of
a stage may be excluded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.runtime import task_run

from flows.artifacts import StageProgress, show_stage_report
from flows.gpu_leases import taken
from flows.orphan_watch import end_unwanted
from flows.subprocess_jobs import ENDING, ChildJob, EndedError, end_children, run_child
from pipeline.errors import InputError, RunError, StageError
from pipeline.execution.progress import ProgressNote
from pipeline.execution.reports import FailedShard, StageReport
from pipeline.io.atomic import write_json
from pipeline.stages.jobs import PerShardJob

POLL_SECONDS = 2.0
RETRY_DELAYS = (3.0, 15.0)
"""Seconds before each retry of a task."""


class ShardsFailedError(RunError):
    """Some shards of a task failed, and it will be tried again."""


async def _may_pass(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry: not if the input is wrong, all jobs would fail alike or the run is being ended.

    Waits for the delay: Prefect's own would keep an interrupted run from ending.
    """
    if isinstance(await state.aresult(raise_on_failure=False), InputError | StageError | EndedError):
        return False
    end = time.monotonic() + RETRY_DELAYS[min(run.run_count or 1, len(RETRY_DELAYS)) - 1]
    while time.monotonic() < end and not ENDING.is_set():
        await asyncio.sleep(0.1)
    return not ENDING.is_set()


@task(
    cache_policy=NO_CACHE,  # the committed shards decide what is done
    persist_result=False,
    retries=len(RETRY_DELAYS),
    retry_condition_fn=_may_pass,
    task_run_name="{job.name}",
)
def run_job(job: ChildJob) -> dict[str, Any] | None:
    """Run one job and return its report.

    Raises:
        ShardsFailedError: shards failed, and this is not the last try.
    """
    last_try = (task_run.run_count or 1) > len(RETRY_DELAYS)
    try:
        report = _run(job)
    except StageError:
        raise
    except RunError:
        if not last_try or not (alone := job.split()):
            raise
        report = _run_one_by_one(job.stage, alone)
    failed = (report or {}).get("failed", [])
    if failed and not last_try:
        raise ShardsFailedError(f"{len(failed)} shards failed; first: {failed[0]['shard']}: {failed[0]['error']}")
    return report


def _run(job: ChildJob) -> dict[str, Any] | None:
    if job.persistent_worker:
        from flows.ray_runner import run_persistent

        return run_persistent(job)
    if (report := job.finished()) is not None:
        return report
    if job.gpus:
        with taken(job.gpus, partial(_show_waiting, job)) as gpus:
            return run_child(job, gpus)
    return run_child(job)


def _show_waiting(job: ChildJob, words: str) -> None:
    """Log once that the job waits, and show it in the stage's progress."""
    before = job.note()
    if before is None or before.waiting != words:
        get_run_logger().info("%s: %s", job.name, words)
    job.logs.mkdir(parents=True, exist_ok=True)
    note = ProgressNote(stage=job.stage, done=0, total=1, unit="jobs", waiting=words)
    write_json(job.file("progress"), note.model_dump())


def _run_one_by_one(stage: str, jobs: Mapping[str, ChildJob]) -> dict[str, Any]:
    """Run each shard of a job whose process died (out of memory, a crash in a library) by itself.

    The shard that kills its process fails, and the others are made.
    """
    total = StageReport(stage=stage)
    for shard, alone in jobs.items():
        try:
            total.merge(StageReport.model_validate(_run(alone)))
        except StageError:
            raise
        except RunError as error:
            total.failed.append(FailedShard(shard=shard, error=str(error).splitlines()[0].removesuffix(":")))
    return total.model_dump(mode="json")


def run_jobs(
    title: str,
    jobs: Sequence[ChildJob],
    max_failed: int = 0,
    *,
    noted: Callable[[Sequence[FailedShard]], None] | None = None,
) -> StageReport:
    """Run a stage's jobs, as many at a time as the flow's task runner allows, and show progress and report.

    Args:
        noted: called with the failed shards, also if there are none or too many.

    Raises:
        StageError: a failure concerns all jobs; the others were ended.
        InputError, RunError: of the first failed job, once all have ended.
        RunError: more than ``max_failed`` shards failed.
    """
    ENDING.clear()
    end_unwanted()
    progress = StageProgress(title, jobs)
    with _tasks(jobs):
        try:
            futures: list[PrefectFuture[Any]] = [run_job.submit(job) for job in jobs]
            waiting = set(futures)
            seen: set[PrefectFuture[Any]] = set()
            while waiting:
                waiting = wait(futures, timeout=POLL_SECONDS).not_done
                progress.update([future not in waiting for future in futures])
                if any(isinstance(f.result(raise_on_failure=False), StageError) for f in set(futures) - waiting - seen):
                    _end_alike(jobs)
                seen = set(futures) - waiting
        except BaseException:
            # Ctrl-C, or Prefect's SIGTERM: the task runner waits for the jobs, and they for their children
            end_children()
            raise
    total = StageReport(stage=title)
    errors: list[Exception] = []
    for job, future in zip(jobs, futures, strict=True):
        try:
            report = future.result()
        except Exception as error:
            errors.append(error)
            continue
        if isinstance(job.job, PerShardJob) and report is not None:
            total.merge(StageReport.model_validate(report))
    if stage_wide := [error for error in errors if isinstance(error, StageError)]:
        raise stage_wide[0]
    show_stage_report(title, total)
    if noted is not None:
        noted(total.failed)
    if errors:
        raise errors[0]
    if len(total.failed) > max_failed:
        first = total.failed[0]
        raise RunError(
            f"{title}: {len(total.failed)} shards failed (resources.max_failed: {max_failed}); "
            f"first: {first.shard}: {first.error}"
        )
    return total.require_usable()


def _end_alike(jobs: Sequence[ChildJob]) -> None:
    """End the jobs under way, which would fail as another one has."""
    end_children()
    if jobs[0].persistent_worker:
        from flows.ray_runner import end_stage

        end_stage()


def _tasks(jobs: Sequence[ChildJob]) -> AbstractContextManager[None]:
    """Context of a stage's tasks."""
    if not jobs or not jobs[0].persistent_worker:
        return nullcontext()
    from flows.ray_runner import cluster_tasks

    return cluster_tasks(jobs[0])
