"""Build the child jobs of a run from its folder and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import yaml

from flows.gpu_leases import gpus_here
from flows.subprocess_jobs import ChildJob
from pipeline.config import SelfTrainConfig, TrainConfig
from pipeline.errors import InputError
from pipeline.execution.options import DeviceOptions
from pipeline.io.atomic import write_atomic, write_json
from pipeline.io.paths import local_folder
from pipeline.runs.layout import RunLayout
from pipeline.stages.jobs import Job, PerShardJob, TrainModel
from pipeline.system.devices import cores

DATA_WORKERS = 8
"""Of a process on a GPU at most, unless the settings say more."""


def chunks(shards: Sequence[str], size: int, parallel: int) -> list[list[str]]:
    """Shards in tasks of ``size`` at most, and of about equal sizes when there are fewer than ``parallel`` times it."""
    size = max(1, min(size, -(-len(shards) // parallel)))
    return [list(shards[i : i + size]) for i in range(0, len(shards), size)]


class JobBuilder:
    """Makes the child jobs of one run: each has a stage's job, and what it may use of the machine."""

    def __init__(self, config: SelfTrainConfig, layout: RunLayout) -> None:
        self.config, self.layout = config, layout

    def child(self, name: str, job: Job, *, together: int = 1, counted_as: str | None = None) -> ChildJob:
        """A stage's job in a child process; ``together`` of them run at a time and share cores and GPUs."""
        on_device = isinstance(job, DeviceOptions)
        if on_device:
            job = job.model_copy(update={"device": self.config.resources.device})
        return ChildJob(
            name=name, stage=counted_as or job.stage, job=job, logs=self.layout.logs, threads=self._threads(together),
            gpus=self._gpus(together) if on_device else 0,
        )  # fmt: skip

    def training(
        self,
        name: str,
        stage: str,
        config: TrainConfig,
        sources: Mapping[str, Sequence[str]],
        out: Path,
        *,
        init: Path | None,
        together: int = 1,
    ) -> ChildJob:
        """A training, in as many processes as the resources say."""
        resources, gpus = self.config.resources, self._gpus(together)
        processes = resources.train_processes or max(1, gpus)
        # one, where the settings say nothing: with more the same weights would differ in their last digits
        threads = self._threads(together, processes) or 1
        settings = self.layout.root / "settings"  # for a training on several nodes: docs/cluster.md
        write_json(settings / f"{name}.json", config.model_dump(mode="json"))
        if init is None:
            write_json(settings / "model.json", self.config.model.model_dump(mode="json"))
        job = TrainModel(
            settings=config, sources=sources, out=out, init=init, model=self.config.model if init is None else None,
            device=resources.device, threads=threads, data_workers=self._data_workers(together, processes),
        )  # fmt: skip
        return ChildJob(
            name=name, stage=stage, job=job, logs=self.layout.logs, threads=threads, gpus=gpus, processes=processes,
            fsdp=resources.fsdp,
        )  # fmt: skip

    def _threads(self, together: int, processes: int = 1) -> int | None:
        """Of each process of each job; None: all cores."""
        if self.config.resources.threads is not None:
            return self.config.resources.threads
        if together * processes == 1:
            return None
        return self._cores(together, processes)

    def _cores(self, together: int, processes: int) -> int:
        """Of each process of each job."""
        return max(1, cores() // (min(together, self.config.resources.parallel) * processes))

    def _data_workers(self, together: int, processes: int) -> int:
        """Of each process of each training: a GPU that waits for images costs more than cores; a CPU trains on these itself."""
        resources = self.config.resources
        if resources.data_workers is not None:
            return resources.data_workers
        return min(DATA_WORKERS, self._cores(together, processes)) if resources.device == "cuda" else 0

    def _gpus(self, together: int) -> int:
        """Of each job; 0 where there is none, which the job itself will say."""
        resources = self.config.resources
        if resources.device != "cuda" or not self._here:
            return 0
        return resources.gpus or max(1, self._here // min(together, resources.parallel))

    @cached_property
    def _here(self) -> int:
        """GPUs of this machine."""
        return len(gpus_here())

    def chunked(self, name: str, job: PerShardJob, *, persistent: bool = False) -> list[ChildJob]:
        """One child a chunk of the job's shards.

        persistent: on a cluster, if there is one, in processes that keep what they load.
        """
        resources, field = self.config.resources, job.shards_field
        parts = chunks(getattr(job, field), resources.chunk_shards, resources.parallel)
        children = []
        for i, part in enumerate(parts):
            # the run decides how many failed shards are too many
            one = job.model_copy(update={field: tuple(part), "max_failed": len(part)})
            child = self.child(f"{name}-{i:03d}", one, together=len(parts))
            kept = persistent and resources.cluster is not None
            children.append(child.model_copy(update={"persistent_worker": kept}))
        return children


def folder_of(out: str) -> Path:
    """A run's folder, absolute: its children work elsewhere.

    Raises:
        InputError: it is a URL.
    """
    return local_folder(out, "a run").absolute()


def _refuse_other_data(layout: RunLayout, config: SelfTrainConfig) -> None:
    """A forgotten recipe is the demo's, and would train the demo's teacher in the place of the one that is there."""
    if not layout.config.is_file():
        return
    try:
        demo_there = yaml.safe_load(layout.config.read_text())["demo"] is not None
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        return  # nothing that we wrote
    if demo_there != (config.demo is not None):
        there, given = ("the demo", "real data") if demo_there else ("real data", "the demo")
        raise InputError(
            f"{layout.root}: a run on {there} lies there, and this recipe is {given}'s; want the run's own recipe ({layout.config} has it) "
            "or another folder (out)"
        )


def job_builder(out: str, config: SelfTrainConfig) -> JobBuilder:
    """The jobs of a run in the folder ``out``, whose settings are written there.

    Raises:
        InputError: see :func:`folder_of`; the demo in the folder of a run on real data, or the other way round.
    """
    layout = RunLayout(folder_of(out))
    _refuse_other_data(layout, config)
    text = yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)
    if not layout.config.is_file() or layout.config.read_text() != text:
        write_atomic(layout.config, text)
    return JobBuilder(config, layout)
