"""Labelling and parsing on a Ray cluster: Prefect's tasks run there, and what a process has loaded serves all its chunks.

Ray gives a chunk a GPU (or a core) on some machine. A GPU has one process of its own, an actor that holds the teacher and
does every chunk which that GPU is given. On the CPU each of Ray's processes for tasks, which are used again and again, has
such an actor: a chunk at which the process dies would else take the task with it, and could not be set aside.
Whether work is done is still decided by what lies in the run's folder, which all machines must see under the same path:
a chunk that is run twice because a machine died finds the shards that were done and makes the rest, the same bytes.
"""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from typing import Any, Self

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

import ray
from prefect.task_runners import TaskRunner
from prefect_ray.context import remote_options
from prefect_ray.task_runners import PrefectRayFuture, RayTaskRunner
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flows.subprocess_jobs import ChildJob, prepare_files, write_times
from pipeline.cli.common import one_line
from pipeline.cli.run_job import run_file
from pipeline.config import ResourcesConfig
from pipeline.errors import InputError, RunError
from pipeline.execution.progress import PROGRESS_FILE

log = logging.getLogger("glip_self_train")
LOCAL = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "log_to_driver": False}
KEEPER, IDLE_SECONDS, WATCH_SECONDS = "glip-keeper", 600.0, 5.0
RETRIES = 5
"""Times that Ray gives a task to another process when one dies, as with its machine; Prefect's own retries are for errors."""
STARTS = 2
"""Times that one try of a task begins its job in a process of its own, which may have died of what another job left in it."""


class ClusterRunner(RayTaskRunner[Any]):
    """prefect-ray's runner, every task of which asks Ray for ``options`` (num_cpus, num_gpus, ...)."""

    def __init__(
        self, address: str | None = None, init_kwargs: dict[str, Any] | None = None, options: Mapping[str, Any] = {}
    ) -> None:
        super().__init__(address, init_kwargs)
        self.options = dict(options)

    def duplicate(self) -> ClusterRunner:
        """A new runner with the same settings."""
        return type(self)(self.address, self.init_kwargs, self.options)

    def __enter__(self) -> Self:
        super().__enter__()
        if _in_the_flow():
            self._anchor = anchored()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if _in_the_flow():
            dismiss_keepers()
            self._anchor = None
        super().__exit__(*exc_info)

    def submit(self, *arguments: Any, **named: Any) -> PrefectRayFuture[Any]:
        """As RayTaskRunner's."""
        with remote_options(**self.options):
            return super().submit(*arguments, **named)


def _in_the_flow() -> bool:
    """Prefect enters a duplicate of the runner in every task, too, where other tasks are still in need of the processes."""
    return bool(ray.get_runtime_context().worker.mode == ray.SCRIPT_MODE)


def cluster_runner(resources: ResourcesConfig, *, gpus: bool) -> TaskRunner[Any]:
    """The task runner of a stage whose jobs have ``persistent_worker`` set, on the cluster that ``resources.cluster`` names.

    gpus: each task holds one; else it holds cores alone, of which machines with few GPUs have many.
    """
    cores = resources.threads or 1
    options = {"num_cpus": cores, "num_gpus": float(gpus), "max_retries": RETRIES, "max_calls": 0}
    if resources.cluster == "local":
        settings: dict[str, Any] = {**LOCAL, "num_cpus": cores * resources.parallel}
        return ClusterRunner("local", settings, options)  # not one that happens to run here
    return ClusterRunner(resources.cluster, {"log_to_driver": False}, options)


def run_persistent(job: ChildJob) -> dict[str, Any] | None:
    """Run a job in a process that outlives it: the actor of the GPU that Ray has given us, or else of the process that asks.

    Raises:
        InputError, RunError: as :func:`flows.subprocess_jobs.run_child`; RunError also if the process died again and again.
    """
    if not ray.is_initialized():
        return run_here(job)
    context = ray.get_runtime_context()
    node = context.get_node_id()
    gpu = next((str(gpu) for gpu in ray.get_gpu_ids()), None)
    place = f"GPU {gpu} of node {node}" if gpu else f"node {node}"
    for left in reversed(range(STARTS)):
        keeper: Any = ray.remote(Keeper).options(
            name=f"{KEEPER}-{context.get_job_id()}-{node}-{gpu or context.get_worker_id()}", namespace=KEEPER,
            get_if_exists=True, num_cpus=0,
            lifetime="detached",  # else it would end with the process that asked first
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": gpu}} if gpu else None,
        ).remote(_anchor_name())  # fmt: skip
        try:
            # ray.get would give this task's core to another one meanwhile
            said: Any = keeper.run.remote(job).future().result()
        except ray.exceptions.RayActorError as error:
            if not left:  # a shard that kills every process is set aside as one that fails
                raise RunError(
                    f"{job.name}: its process on {place} died {STARTS} times; see {job.logs / job.name}.log"
                ) from error
            log.warning("%s: its process on %s died; a new one takes its place", job.name, place)
            continue
        if isinstance(said, InputError | RunError):
            raise said
        return said
    raise AssertionError("unreachable")


class Anchor:
    """Of no use but to be there for as long as the flow is: Ray ends it with the process that made it, however that ends."""


def _anchor_name() -> str:
    return f"{KEEPER}-anchor-{ray.get_runtime_context().get_job_id()}"


def anchored() -> Any:
    """Make the anchor of this run, by which its keepers know that it lives; it lasts as long as what this gives is held."""
    # if the machine that it is on dies, it comes back on another
    options = {"name": _anchor_name(), "namespace": KEEPER, "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
    return ray.remote(Anchor).options(**options).remote()


class Keeper:
    """What runs in the process of one GPU or core, as an actor. The task that asks holds the GPU with Ray; this process holds what is loaded.

    It ends with the run (:func:`dismiss_keepers`), by itself when the run's flow is gone (:func:`anchored`), or when nobody asked
    anything for IDLE_SECONDS.
    """

    def __init__(self, anchor: str | None = None) -> None:
        """anchor: what it ends with, by name."""
        self._timer = self._wound()
        if anchor is not None:
            threading.Thread(target=self._end_with, args=(anchor,), daemon=True).start()

    @staticmethod
    def _end_with(anchor: str) -> None:
        """A run whose flow was killed may be started again by other settings, under which ours would be written over its shards."""
        missed = 0
        while missed < 2:
            time.sleep(WATCH_SECONDS)
            try:
                ray.get_actor(anchor, namespace=KEEPER)
                missed = 0
            except ValueError:  # what Ray raises where there is none; of other troubles it knows nothing
                missed += 1
            except Exception as error:
                log.warning("cannot ask Ray whether the run lives: %s", error)
        os._exit(0)

    def _wound(self) -> threading.Timer:
        timer = threading.Timer(IDLE_SECONDS, os._exit, (0,))
        timer.daemon = True
        timer.start()
        return timer

    def run(self, job: ChildJob) -> dict[str, Any] | InputError | RunError | None:
        """See :func:`run_here`; errors come back as values, as Ray would wrap them. Whatever else is raised ends the process."""
        self._timer.cancel()
        try:
            return run_here(job)
        except (InputError, RunError) as error:
            return error
        except Exception:  # what it leaves behind, as a GPU that broke down does, would fail every other job at once
            with open(job.logs / f"{job.name}.log", "a") as output:
                traceback.print_exc(file=output)
            os._exit(1)
        finally:
            self._timer = self._wound()


def dismiss_keepers() -> None:
    """End the processes of this run."""
    mine = f"{KEEPER}-{ray.get_runtime_context().get_job_id()}-"
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == KEEPER and actor["name"].startswith(mine):
            with suppress(ValueError):  # it has ended by itself
                ray.kill(ray.get_actor(actor["name"], namespace=KEEPER))


def run_here(job: ChildJob) -> dict[str, Any] | None:
    """Run a job in this process, so that the teacher or the parser that it loads is there for the next one.

    Output goes to ``logs/NAME.log``, time and peak memory (of the process so far) to ``times.jsonl``.

    Raises:
        InputError, RunError: the job failed.
    """
    prepare_files(job)
    os.environ[PROGRESS_FILE] = str(job.progress)
    began = time.monotonic()
    with open(job.logs / f"{job.name}.log", "a", buffering=1) as output, redirect_stdout(output):
        print(f"$ {' '.join(job.arguments())}\non {os.uname().nodename}, process {os.getpid()}")
        handler = logging.StreamHandler(output)
        log.addHandler(handler)
        try:
            run_file(str(job.job_file), str(job.report))
        except OSError as error:
            if (found := one_line(error)) is None:
                raise
            raise RunError(f"{job.name}: {found[0]}") from None
        finally:
            log.removeHandler(handler)
            del os.environ[PROGRESS_FILE]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_times(job, time.monotonic() - began, peak)
    report: dict[str, Any] | None = job.read_report()
    return report
