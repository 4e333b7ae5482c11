"""From a run's folder and settings to jobs: the command of each, and what it may use of the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import yaml

from flows.gpu_leases import gpus_here
from flows.subprocess_jobs import Job, launch_command, pipeline_command
from pipeline.config import SelfTrainConfig, TrainConfig
from pipeline.errors import InputError
from pipeline.io.atomic import write_atomic, write_json
from pipeline.io.paths import local_folder, stem
from pipeline.runs.layout import RunLayout
from pipeline.system.devices import cores

DATA_WORKERS = 8
"""Of a process on a GPU at most, unless the settings say more."""


def chunks(shards: Sequence[str], size: int, parallel: int) -> list[list[str]]:
    """Shards in tasks of ``size`` at most, and of about equal sizes when there are fewer than ``parallel`` times it."""
    size = max(1, min(size, -(-len(shards) // parallel)))
    return [list(shards[i : i + size]) for i in range(0, len(shards), size)]


def repeated(option: str, values: Sequence[str]) -> list[str]:
    """``--option value`` for every value."""
    return [part for value in values for part in (option, value)]


class JobBuilder:
    """Makes the jobs of one run: its folder, its settings, and what each child may use."""

    def __init__(self, config: SelfTrainConfig, layout: RunLayout) -> None:
        self.config, self.layout = config, layout

    def job(
        self,
        name: str,
        stage: str,
        *arguments: str,
        together: int = 1,
        counted_as: str | None = None,
        on_device: bool = False,
    ) -> Job:
        """A stage command as a job; ``together`` jobs run at a time and share cores and, ``on_device``, GPUs."""
        if on_device:
            arguments = (*arguments, "--device", self.config.resources.device)
        command = pipeline_command(stage, "--recipe", str(self.layout.config), *arguments)
        gpus = self._gpus(together) if on_device else 0
        job = self._job(name, counted_as or stage, command, self._threads(together), gpus)
        return job.model_copy(update={"command": (*job.command, "--report-json", str(job.report))})

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
    ) -> Job:
        """A training under ``accelerate launch``; its settings are written beside the run's."""
        settings, resources = self.layout.root / "settings", self.config.resources
        write_json(settings / f"{name}.json", config.model_dump(mode="json"))
        arguments = ["--config", str(settings / f"{name}.json"), "--out", str(out)]
        if init is None:
            write_json(settings / "model.json", self.config.model.model_dump(mode="json"))
            arguments += ["--model", str(settings / "model.json")]
        else:
            arguments += ["--init", str(init)]
        arguments += [p for n, shards in sources.items() for s in shards for p in ("--source", f"{n}={s}")]
        arguments += ["--device", resources.device]
        gpus = self._gpus(together)
        processes = resources.train_processes or max(1, gpus)
        threads = self._threads(together, processes)
        if threads:
            arguments += ["--threads", str(threads)]
        workers = self._data_workers(together, processes)
        if workers:
            arguments += ["--data-workers", str(workers)]
        command = launch_command(
            "pipeline.cli.train", *arguments, device=resources.device, processes=processes, fsdp=resources.fsdp
        )
        return self._job(name, stage, command, threads, gpus)

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

    def _job(self, name: str, stage: str, command: Sequence[str], threads: int | None, gpus: int) -> Job:
        return Job(
            name=name,
            stage=stage,
            command=tuple(command),
            logs=self.layout.logs,
            threads=threads,
            gpus=gpus,
        )

    def chunked(
        self,
        name: str,
        stage: str,
        option: str,
        shards: Sequence[str],
        *arguments: str,
        kept: bool = False,
        on_device: bool = False,
    ) -> list[Job]:
        """One job a chunk of shards; ``kept`` on a cluster, if there is one, in processes that keep what they load."""
        resources = self.config.resources
        parts = chunks(shards, resources.chunk_shards, resources.parallel)

        def job(name: str, part: Sequence[str]) -> Job:
            made = self.job(
                name, stage, *repeated(option, part), *arguments,
                "--max-failed", str(len(part)), together=len(parts), on_device=on_device,  # the run decides how many are too many
            )  # fmt: skip
            return made.model_copy(update={"kept": kept and resources.cluster is not None})

        jobs = []
        for i, part in enumerate(parts):
            title = f"{name}-{i:03d}"
            alone = {stem(shard): job(f"{title}-{stem(shard)}", [shard]) for shard in part}
            jobs.append(job(title, part).model_copy(update={"one_by_one": alone}))
        return jobs


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
