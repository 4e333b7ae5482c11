"""Build the child jobs of a run from its folder and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.gpu_leases import gpus_here
from flows.subprocess_jobs import ChildJob
from pipeline.config import ResourcesConfig, SelfTrainConfig, TrainConfig
from pipeline.errors import InputError
from pipeline.execution.options import Device, DeviceOptions
from pipeline.io.atomic import write_atomic, write_json
from pipeline.io.paths import local_folder
from pipeline.runs.excluded_shards import shards_of_set
from pipeline.runs.layout import RunLayout
from pipeline.stages.jobs import Job, PerShardJob, TrainModel
from pipeline.system.devices import cores

DATA_WORKERS = 8
"""Default maximum of data loader processes per training process on a GPU."""


def chunks(shards: Sequence[str], size: int, parallel: int) -> list[list[str]]:
    """Split shards into chunks of at most ``size``, smaller if there would be fewer than ``parallel`` chunks."""
    size = max(1, min(size, -(-len(shards) // parallel)))
    return [list(shards[i : i + size]) for i in range(0, len(shards), size)]


def chosen_device(resources: ResourcesConfig) -> Device:
    """The recipe's device; of ``auto`` that of this machine."""
    if resources.device == "auto":
        return "cuda" if gpus_here() else "cpu"
    return resources.device


def gpus_per_job(resources: ResourcesConfig, here: int, together: int) -> int:
    """GPUs of each of ``together`` jobs on a machine that has ``here``."""
    return here and (resources.gpus or max(1, here // min(together, resources.parallel)))


class JobBuilder:
    """Builds the child jobs of one run: each has a stage's job and its share of the machine."""

    def __init__(self, config: SelfTrainConfig, layout: RunLayout) -> None:
        self.config, self.layout = config, layout
        self._here = len(gpus_here()) if config.resources.device != "cpu" else 0
        self.device = chosen_device(config.resources)

    def model(self, name: str) -> Path:
        """Model folder of "teacher", "student-1" or "control-1"."""
        return self.layout.model(name, self.config.teacher)

    def child(self, name: str, job: Job, *, together: int = 1, counted_as: str | None = None) -> ChildJob:
        """A stage's job in a child process, one of ``together`` that share cores and GPUs."""
        on_device = isinstance(job, DeviceOptions)
        if on_device:
            job = job.model_copy(update={"device": self.device})
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
        """A training, in ``resources.train_processes`` processes: default one per GPU, or one."""
        resources, gpus = self.config.resources, self._gpus(together)
        processes = resources.train_processes or max(1, gpus)
        # default 1: with another number the weights would differ in their last digits
        threads = self._threads(together, processes) or 1
        settings = self.layout.root / "settings"  # for a training on several nodes: docs/cluster.md
        write_json(settings / f"{name}.json", config.model_dump(mode="json"))
        if init is None:
            write_json(settings / "model.json", self.config.model.model_dump(mode="json"))
        validation: dict[str, list[str]] = {}
        if config.validate_every and (validated_on := self.config.data.validation):
            validation[validated_on] = shards_of_set(self.layout, validated_on)
        job = TrainModel(
            settings=config, sources=sources, validation=validation, out=out, init=init,
            model=self.config.model if init is None else None,
            device=self.device, threads=threads, data_workers=self._data_workers(together, processes),
        )  # fmt: skip
        return ChildJob(
            name=name, stage=stage, job=job, logs=self.layout.logs, threads=threads, gpus=gpus, processes=processes,
            fsdp=resources.fsdp,
        )  # fmt: skip

    def _threads(self, together: int, processes: int = 1) -> int | None:
        """CPU threads per process of a job; None: all cores."""
        if self.config.resources.threads is not None or together * processes == 1:
            return self.config.resources.threads
        return self._cores(together, processes)

    def _cores(self, together: int, processes: int) -> int:
        """Share of the cores per process of a job."""
        return max(1, cores() // (min(together, self.config.resources.parallel) * processes))

    def _data_workers(self, together: int, processes: int) -> int:
        """Data loader processes per training process: none by default on the CPU, whose cores the training uses."""
        resources = self.config.resources
        if resources.data_workers is not None:
            return resources.data_workers
        return min(DATA_WORKERS, self._cores(together, processes)) if self.device == "cuda" else 0

    def _gpus(self, together: int) -> int:
        """GPUs per job; 0 where the machine has none, which the job itself reports."""
        return gpus_per_job(self.config.resources, self._here, together)

    def chunked(self, name: str, job: PerShardJob, *, persistent: bool = False) -> list[ChildJob]:
        """One child job per chunk of the job's shards; a single one if the job has no list of shards.

        persistent: on a cluster, if the run has one, in processes that keep what they load.
        """
        resources, field = self.config.resources, job.shards_field
        if not field:
            return [self.child(name, job)]
        parts = chunks(getattr(job, field), resources.chunk_shards, resources.parallel)
        share: dict[str, Any] = {}
        if persistent and resources.cluster is not None:  # a core by default: a machine with few GPUs has many
            gpus = int(isinstance(job, DeviceOptions) and self.device == "cuda")
            share = {"persistent_worker": True, "threads": resources.threads or 1, "gpus": gpus}
        children = []
        for i, part in enumerate(parts):
            # the run, not the chunk, decides how many failed shards are too many
            one = job.model_copy(update={field: tuple(part), "max_failed": len(part)})
            children.append(self.child(f"{name}-{i:03d}", one, together=len(parts)).model_copy(update=share))
        return children


def folder_of(out: str) -> Path:
    """A run's folder as an absolute path. Raises InputError if it is a URL."""
    return local_folder(out, "a run").absolute()


def refuse_other_data(layout: RunLayout, config: SelfTrainConfig) -> None:
    """Raise InputError if a demo recipe (the default) meets a folder with a run on real data, or vice versa."""
    if not layout.config.is_file():
        return
    try:
        demo_there = yaml.safe_load(layout.config.read_text())["demo"] is not None
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        return  # not a file that a run wrote
    if demo_there != (config.demo is not None):
        there, given = ("the demo", "real data") if demo_there else ("real data", "the demo")
        raise InputError(
            f"{layout.root}: found a run on {there}, but this recipe is {given}'s; want the run's own recipe "
            f"({layout.config}) or another folder (out)"
        )


def job_builder(out: str, config: SelfTrainConfig) -> JobBuilder:
    """The job builder of a run in the folder ``out``; writes the run's settings there.

    Raises:
        InputError: see :func:`folder_of`; the demo in the folder of a run on real data, or the reverse.
    """
    layout = RunLayout(folder_of(out))
    refuse_other_data(layout, config)
    text = yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)
    if not layout.config.is_file() or layout.config.read_text() != text:
        write_atomic(layout.config, text)
    return JobBuilder(config, layout)
