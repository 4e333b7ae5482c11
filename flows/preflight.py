"""Checks before a run starts: the recipe, its files and folder, and the machine."""

from __future__ import annotations

from flows.gpu_leases import check_count, gpus_here
from flows.job_builder import gpus_per_job, refuse_other_data
from flows.task_runners import check_cluster
from pipeline.config import SelfTrainConfig
from pipeline.errors import InputError
from pipeline.runs.layout import RunLayout
from pipeline.runs.plan import check_space, make_plan
from pipeline.runs.preflight import recipe_problems, refuse
from pipeline.system.devices import gpus

STORE_PATIENCE = 60.0
"""Seconds for the answers of stores where no person waits."""


def check_run(config: SelfTrainConfig, layout: RunLayout, *, ingests: bool = True) -> None:
    """Raise InputError with a line for each thing that would stop a run (``self-train check``).

    ingests: whether the human-labelled sets' own files are read.
    """
    refuse(recipe_problems(config, layout, STORE_PATIENCE, ingests=ingests))
    check_machine(config)
    refuse_other_data(layout, config)
    check_space(make_plan(config, layout), layout)


def check_machine(config: SelfTrainConfig) -> None:
    """Raise InputError if device, GPUs or cluster are unavailable, or a training does not fit them."""
    resources = config.resources
    check_cluster(resources)
    if resources.cluster is not None:
        if resources.device == "auto":
            raise InputError(
                "resources.device: found auto with resources.cluster; want cpu or cuda, as the cluster has"
            )
        return
    here = gpus_here() if resources.device != "cpu" else []
    if here:
        check_count(resources.gpus or 1, here)
    elif resources.device == "cuda":
        try:
            gpus()
        except InputError:
            raise InputError(
                "resources.device: found cuda, and no GPU on this machine; want --set resources.device=cpu, or a "
                "driver and a CUDA build of torch"
            ) from None
    refuse(_processes(config, len(here)))


def _processes(config: SelfTrainConfig, gpus: int) -> list[str]:
    """Trainings whose batches the processes cannot share, or whose precision needs a GPU."""
    lines = []
    for name, training, together in (
        ("teacher", config.teacher, 1), ("student", config.student, 1 + config.trains_control)
    ):  # fmt: skip
        if name == "teacher" and training.steps == 0:
            continue
        processes = config.resources.train_processes or max(1, gpus_per_job(config.resources, gpus, together))
        pieces = processes * training.accumulate
        if training.batch_size % pieces:
            lines.append(
                f"{name}.batch_size: found {training.batch_size}, which {processes} processes times accumulate "
                f"{training.accumulate} cannot share; want a multiple of {pieces}"
            )
        if training.precision == "fp16" and not gpus and config.resources.device != "cuda":
            lines.append(f"{name}.precision: found fp16 on a CPU; want bf16 or float32, or resources.device=cuda")
    return lines
