"""Processes, threads and devices that a run may use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.base import Config


class ResourcesConfig(Config):
    """Resources of a run; never part of an output's fingerprint."""

    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu", description="cpu, cuda, or auto: cuda if the machine that runs the flow has a GPU, else cpu"
    )
    parallel: int = Field(1, ge=1, description="concurrent child processes (trainings, chunks of shards)")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of each child process; default: cores divided by parallel"
    )
    gpus: int | None = Field(
        None,
        ge=1,
        description="GPUs per job that uses GPUs (labelling of a chunk, evaluation, training); default: the machine's, "
        "divided by parallel",
    )
    train_processes: int | None = Field(
        None, ge=1, description="processes of a training on this machine; default: one per GPU, or one on the CPU"
    )
    data_workers: int | None = Field(
        None,
        ge=0,
        description="data loader processes per training process; default: on GPUs its share of the cores, at most 8; "
        "on the CPU 0",
    )
    fsdp: bool = Field(False, description="shard the weights among the processes of a training (FSDP2)")
    chunk_shards: int = Field(8, ge=1, description="shards per task; each shard is still committed on its own")
    max_failed: int = Field(
        0, ge=0, description="failed shards of a stage to exclude, with a reason, before the run fails"
    )
    cluster: str | None = Field(
        None,
        pattern=r"^(local|auto|ray://[^@/?#]+|[^@/:]+:\d+)$",
        description="Ray cluster for parsing and labelling: ray://HOST:10001, HOST:6379, or local for one on this "
        "machine; default: child processes on this machine",
    )
