"""Parsing and labelling on a Ray cluster, in processes that keep the loaded parser or teacher from chunk to chunk.

Ray assigns each chunk's task a GPU (or a core) of some machine. Each GPU has one process of its own, an
actor that loads the teacher and processes every chunk of that GPU. On the CPU each of Ray's reused task
processes has such an actor: a chunk that kills its process would otherwise kill the task too, and could
not be excluded. The run's folder decides what is done, and all machines must see it under the same path:
a chunk that runs twice, because a machine died, finds the committed shards and makes the rest, byte for
byte the same.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

import ray
from prefect.task_runners import TaskRunner
from prefect_ray.context import remote_options
from prefect_ray.task_runners import RayTaskRunner
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flows.subprocess_jobs import ChildJob, EndedError, prepare_files, write_times
from pipeline.cli.common import one_line
from pipeline.cli.run_job import run_file
from pipeline.config import ResourcesConfig
from pipeline.errors import InputError, RunError, StageError
from pipeline.execution.progress import PROGRESS_FILE
from pipeline.execution.stage_failures import stage_failure

log = logging.getLogger("glip_self_train")
LOCAL = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "log_to_driver": False}
KEEPER, IDLE_SECONDS, WATCH_SECONDS = "glip-keeper", 600.0, 5.0
RETRIES = 5
"""Ray's restarts of a task whose process or machine died; Prefect's own retries are for errors."""
STARTS = 2
"""Starts of a job's actor in one try of a task; the actor may have died of an earlier job's leftovers."""


def cluster_runner(resources: ResourcesConfig) -> TaskRunner[Any]:
    """The task runner of a stage whose jobs have ``persistent_worker`` set, on the cluster ``resources.cluster``."""
    settings: dict[str, Any] = {"log_to_driver": False}
    if resources.cluster == "local":  # a cluster of its own, not one that happens to run here
        settings = {**LOCAL, "num_cpus": (resources.threads or 1) * resources.parallel}
    runner: TaskRunner[Any] = RayTaskRunner(resources.cluster, settings)
    return runner


@contextmanager
def cluster_tasks(job: ChildJob) -> Iterator[None]:
    """Context in which a flow submits and awaits tasks; their persistent processes end with it.

    Each task holds as many cores and GPUs as ``job`` has threads and GPUs.
    """
    if not ray.is_initialized():  # a stage on the default runner: see run_persistent
        yield
        return
    anchor = anchored()
    try:
        with remote_options(num_cpus=job.threads, num_gpus=float(job.gpus), max_retries=RETRIES, max_calls=0):
            yield
    finally:
        dismiss_keepers()
        del anchor


def run_persistent(job: ChildJob) -> dict[str, Any] | None:
    """Run a job in a process that outlives it: the actor of this task's GPU, or else of this process.

    Without Ray it runs in this process.

    Raises:
        EndedError: the stage is being ended (:func:`end_stage`).
        InputError, RunError: as :func:`flows.subprocess_jobs.run_child`; RunError also if the actor died
            at each of STARTS starts.
    """
    if not ray.is_initialized():
        return run_here(job)
    context = ray.get_runtime_context()
    node = context.get_node_id()
    gpu = next((str(gpu) for gpu in ray.get_gpu_ids()), None)
    place = f"GPU {gpu} of node {node}" if gpu else f"node {node}"
    for _ in range(STARTS):
        if not _stage_goes_on():
            raise EndedError(f"{job.name}: ended with its stage")
        keeper: Any = ray.remote(Keeper).options(
            name=f"{KEEPER}-{context.get_job_id()}-{node}-{gpu or context.get_worker_id()}", namespace=KEEPER,
            get_if_exists=True, num_cpus=0,
            lifetime="detached",  # else it would end with the process that started it
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": gpu}} if gpu else None,
        ).remote(_anchor_name())  # fmt: skip
        try:
            # ray.get would release this task's core to another task meanwhile
            result: dict[str, Any] | InputError | RunError | None = keeper.run.remote(job).future().result()
        except ray.exceptions.RayActorError as error:
            log.warning("%s: its process on %s died: %s", job.name, place, type(error).__name__)
            continue
        if isinstance(result, InputError | RunError):
            raise result
        return result
    # the caller excludes a shard that kills every process
    raise RunError(f"{job.name}: its process on {place} died {STARTS} times; see {job.logs / job.name}.log")


class Anchor:
    """Empty actor that lives as long as the flow: Ray ends it with the process that created it."""


def _anchor_name() -> str:
    return f"{KEEPER}-anchor-{ray.get_runtime_context().get_job_id()}"


def anchored() -> Any:
    """Create this run's anchor, by which its keepers know that the run lives; it ends with the returned handle."""
    # max_restarts: if its machine dies, it restarts on another
    options = {"name": _anchor_name(), "namespace": KEEPER, "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
    return ray.remote(Anchor).options(**options).remote()


def _stage_goes_on() -> bool:
    """Whether the anchor exists; queried twice, as its machine may just have died."""
    for _ in range(2):
        with suppress(ValueError):
            ray.get_actor(_anchor_name(), namespace=KEEPER)
            return True
        time.sleep(1)
    return False


def end_stage() -> None:
    """End the jobs on the cluster that are under way; none is started any more."""
    if ray.is_initialized():
        with suppress(ValueError):
            ray.kill(ray.get_actor(_anchor_name(), namespace=KEEPER))
        dismiss_keepers()


class Keeper:
    """Actor that runs the jobs of one GPU or core, one after the other, and keeps what they load.

    The calling task holds the GPU in Ray's accounts. The actor ends with the run
    (:func:`dismiss_keepers`), by itself when the run's flow is gone (:func:`anchored`), and after
    IDLE_SECONDS without a job.
    """

    def __init__(self, anchor: str) -> None:
        """anchor: name of the actor that it ends with."""
        self._idle_since = time.monotonic()  # infinite during a job
        threading.Thread(target=self._watch, args=(anchor,), daemon=True).start()

    def _watch(self, anchor: str) -> None:
        """Exit when idle for long, or when the anchor is gone: a restarted run may have other settings."""
        missed = 0
        while missed < 2 and time.monotonic() - self._idle_since < IDLE_SECONDS:
            time.sleep(WATCH_SECONDS)
            try:
                ray.get_actor(anchor, namespace=KEEPER)
                missed = 0
            except ValueError:  # Ray raises it for an unknown actor, and other errors where it does not know
                missed += 1
            except Exception as error:
                log.warning("cannot find out from Ray whether the run lives: %s", error)
        os._exit(0)

    def run(self, job: ChildJob) -> dict[str, Any] | InputError | RunError | None:
        """As :func:`run_here`, with InputError and RunError returned, as Ray would wrap them.

        Any other exception ends the process: a GPU that broke down, for example, would fail all later jobs.
        """
        self._idle_since = math.inf
        try:
            return run_here(job)
        except (InputError, RunError) as error:
            return error
        except Exception:
            with open(job.logs / f"{job.name}.log", "a") as output:
                traceback.print_exc(file=output)
            os._exit(1)
        finally:
            self._idle_since = time.monotonic()


def dismiss_keepers() -> None:
    """End this run's keepers."""
    mine = f"{KEEPER}-{ray.get_runtime_context().get_job_id()}-"
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == KEEPER and actor["name"].startswith(mine):
            with suppress(ValueError):  # already gone
                ray.kill(ray.get_actor(actor["name"], namespace=KEEPER))


def run_here(job: ChildJob) -> dict[str, Any] | None:
    """Run a job in this process, which keeps the loaded teacher or parser for the next one.

    Output goes to ``logs/NAME.log``, time and peak memory (of the process so far) to ``times.jsonl``.

    Raises:
        InputError, RunError: the job failed.
    """
    prepare_files(job)
    os.environ[PROGRESS_FILE] = str(job.file("progress"))
    began = time.monotonic()
    with open(job.logs / f"{job.name}.log", "a", buffering=1) as output, redirect_stdout(output):
        print(f"$ {' '.join(job.arguments())}\non {os.uname().nodename}, process {os.getpid()}")
        handler = logging.StreamHandler(output)
        log.addHandler(handler)
        try:
            run_file(str(job.file("job")), str(job.file("report")))
        except OSError as error:
            if (found := one_line(error)) is None:
                raise
            kind = StageError if stage_failure(error) else RunError
            raise kind(f"{job.name}: {found[0]}") from None
        finally:
            log.removeHandler(handler)
            del os.environ[PROGRESS_FILE]
    write_times(job, time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return job.read_report()
