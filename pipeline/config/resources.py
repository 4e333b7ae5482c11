"""Processes, threads and devices that a run may use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.base import Config


class ResourcesConfig(Config):
    """What a run may use. Never part of an output's fingerprint."""

    device: Literal["cpu", "cuda"] = "cpu"
    parallel: int = Field(1, ge=1, description="child processes at a time (trainings, chunks of shards)")
    threads: int | None = Field(None, ge=1, description="CPU threads of each child; default: cores over parallel")
    gpus: int | None = Field(
        None,
        ge=1,
        description="GPUs of a job that needs any: a chunk's labelling, an evaluation, a training; default: the machine's over parallel",
    )
    train_processes: int | None = Field(
        None, ge=1, description="processes of a training on this machine; default: one a GPU, one on the CPU"
    )
    data_workers: int | None = Field(
        None,
        ge=0,
        description="processes that read and decode ahead, for each process of a training; default: on GPUs its share of the "
        "cores, 8 at most; on the CPU 0",
    )
    fsdp: bool = Field(False, description="trainings of several processes share the weights out (FSDP2)")
    chunk_shards: int = Field(8, ge=1, description="shards in one task; the commit stays per shard")
    max_failed: int = Field(
        0, ge=0, description="shards of a stage that may be set aside, each with its reason, before the run fails"
    )
    cluster: str | None = Field(
        None,
        pattern=r"^(local|auto|ray://[^@/?#]+|[^@/:]+:\d+)$",
        description="a Ray cluster that parses and labels: ray://HOST:10001, HOST:6379, or local for one on this machine; "
        "default: child processes here",
    )
