"""Where a stage's tasks run: threads of the flow, each with a child process, or a Ray cluster."""

from __future__ import annotations

import os
import secrets
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipeline.config import ResourcesConfig

ON_CLUSTER = {"parse-phrases": False, "pseudo-label": True}
"""Stages whose shards are worth other machines, and whose processes are worth keeping for what they have loaded; whether on GPUs."""


def task_runner(resources: ResourcesConfig, stage: str) -> TaskRunner[Any]:
    """The task runner of a stage flow, by the flow's name.

    Raises:
        InputError: a cluster, but no server that its machines could report to.
    """
    if resources.cluster is None or stage not in ON_CLUSTER:
        return ThreadPoolTaskRunner(max_workers=resources.parallel)
    if resources.cluster == "local" and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on all addresses and runs what it is told; it looks at this once, when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from flows.on_ray import cluster_runner  # ray is an extra

    return cluster_runner(resources, gpus=ON_CLUSTER[stage] and resources.device == "cuda")
