"""Labelling and parsing on a Ray cluster: Prefect's tasks run there, and what a process has loaded serves all its chunks.

Ray gives a chunk a GPU (or a core) on some machine. A GPU has one process of its own, an actor that holds the teacher and
does every chunk which that GPU is given; on the CPU the processes of Ray's tasks do, as Ray uses them again and again.
Whether work is done is still decided by what lies in the run's folder, which all machines must see under the same path:
a chunk that is run twice because a machine died finds the shards that were done and makes the rest, the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import threading
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

import ray
from prefect.settings import get_current_settings
from prefect.task_runners import TaskRunner
from prefect_ray.context import remote_options
from prefect_ray.task_runners import PrefectRayFuture, RayTaskRunner
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flows.children import Job, write_times
from pipeline.config import ResourcesConfig
from pipeline.errors import InputError, RunError
from pipeline.progress import PROGRESS_FILE

log = logging.getLogger("glip_self_train")
LOCAL = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "log_to_driver": False}
KEEPER, IDLE_SECONDS = "glip-keeper", 600.0
RETRIES = 5
"""Times that Ray gives a chunk to another process when one dies; Prefect's own retries are for errors."""


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

    def __exit__(self, *exc_info: Any) -> None:
        dismiss_keepers()
        super().__exit__(*exc_info)

    def submit(self, *arguments: Any, **named: Any) -> PrefectRayFuture[Any]:
        """As RayTaskRunner's."""
        with remote_options(**self.options):
            return super().submit(*arguments, **named)


def cluster_runner(resources: ResourcesConfig) -> TaskRunner[Any]:
    """The task runner of a stage whose jobs have ``kept`` set, on the cluster that ``resources.cluster`` names.

    Raises:
        InputError: tasks would have no server to report to.
    """
    if not get_current_settings().api.url:
        raise InputError(
            f"resources.cluster={resources.cluster}: PREFECT_API_URL is not set; processes on a cluster report to a server "
            "that all of them reach (`prefect server start`)"
        )
    cores = resources.threads or 1
    options = {"num_cpus": cores, "num_gpus": float(resources.device == "cuda"), "max_retries": RETRIES, "max_calls": 0}
    if resources.cluster == "local":
        settings: dict[str, Any] = {**LOCAL, "num_cpus": cores * resources.parallel}
        return ClusterRunner("local", settings, options)  # not one that happens to run here
    return ClusterRunner(resources.cluster, {"log_to_driver": False}, options)


def run_kept(job: Job) -> dict[str, Any] | None:
    """Run a job in a process of Ray's that outlives it: the GPU's own if Ray has given us one, else this one.

    Raises:
        InputError, RunError: as :func:`flows.children.run_child`.
    """
    if not ray.is_initialized() or not (gpus := ray.get_gpu_ids()):
        return run_here(job)
    context = ray.get_runtime_context()
    gpu, node = str(gpus[0]), context.get_node_id()
    for left in reversed(range(RETRIES)):
        keeper: Any = ray.remote(Keeper).options(
            name=f"{KEEPER}-{context.get_job_id()}-{node}-{gpu}", namespace=KEEPER, get_if_exists=True, num_cpus=0,
            lifetime="detached",  # else it would end with the process that asked first
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": gpu}},
        ).remote()  # fmt: skip
        try:
            said: Any = ray.get(keeper.run.remote(job))
        except ray.exceptions.RayActorError as error:
            if not left:  # a shard that kills every process is set aside as one that fails
                raise RunError(f"{job.name}: its process on GPU {gpu} of node {node} died {RETRIES} times") from error
            log.warning("%s: the process of GPU %s died; a new one takes its place", job.name, gpu)
            continue
        if isinstance(said, InputError | RunError):
            raise said
        return said
    raise AssertionError("unreachable")


class Keeper:
    """What runs in the process of one GPU, as an actor. The task that asks holds the GPU with Ray; this process holds what is loaded on it.

    It ends with the run (:func:`dismiss_keepers`), or by itself when nobody asked anything for IDLE_SECONDS.
    """

    def __init__(self) -> None:
        self._timer = self._wound()

    def _wound(self) -> threading.Timer:
        timer = threading.Timer(IDLE_SECONDS, os._exit, (0,))
        timer.daemon = True
        timer.start()
        return timer

    def run(self, job: Job) -> dict[str, Any] | InputError | RunError | None:
        """See :func:`run_here`; errors come back as values, as Ray would wrap them."""
        self._timer.cancel()
        try:
            return run_here(job)
        except (InputError, RunError) as error:
            return error
        finally:
            self._timer = self._wound()


def dismiss_keepers() -> None:
    """End the processes of this run's GPUs."""
    mine = f"{KEEPER}-{ray.get_runtime_context().get_job_id()}-"
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == KEEPER and actor["name"].startswith(mine):
            ray.kill(ray.get_actor(actor["name"], namespace=KEEPER))


def run_here(job: Job) -> dict[str, Any] | None:
    """Run a job's command in this process, so that the teacher or the parser that it loads is there for the next one.

    Output goes to ``logs/NAME.log``, time and peak memory (of the process so far) to ``times.jsonl``.

    Raises:
        InputError, RunError: what the command ended with.
    """
    from pipeline import cli

    job.logs.mkdir(parents=True, exist_ok=True)
    for stale in (job.report, job.progress):
        stale.unlink(missing_ok=True)
    words = list(job.command[job.command.index("pipeline") + 1 :])
    os.environ[PROGRESS_FILE] = str(job.progress)
    began = time.monotonic()
    with open(job.logs / f"{job.name}.log", "a", buffering=1) as output, redirect_stdout(output):
        print(f"$ {' '.join(job.command)}\non {os.uname().nodename}, process {os.getpid()}")
        handler = logging.StreamHandler(output)
        log.addHandler(handler)
        try:
            cli.main(words, prog_name="pipeline", standalone_mode=False)
        except SystemExit as end:
            if isinstance(end.__context__, InputError | RunError):
                raise end.__context__ from None
            raise RunError(f"{job.name} ended with {end.code}; see {output.name}") from None
        finally:
            log.removeHandler(handler)
            del os.environ[PROGRESS_FILE]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_times(job, time.monotonic() - began, peak)
    return json.loads(job.report.read_text()) if job.report.is_file() else None
