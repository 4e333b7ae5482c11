"""Where a stage's tasks run: threads of the flow, each with a child process, or a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import secrets
from typing import Any

from prefect.settings import get_current_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipeline.config import ResourcesConfig
from pipeline.errors import InputError

ON_CLUSTER = {"parse-phrases": False, "pseudo-label": True}
"""Stages whose shards are worth other machines, and whose processes are worth keeping for what they have loaded; whether on GPUs."""


def check_cluster(resources: ResourcesConfig) -> None:
    """Raises InputError: a cluster, but no server that its machines could report to, or nothing to reach it with."""
    if resources.cluster is None:
        return
    if importlib.util.find_spec("prefect_ray") is None:
        raise InputError(
            f"resources.cluster={resources.cluster}: Ray is an extra of this project; pip install -e '.[ray]'"
        )
    if not get_current_settings().api.url:
        raise InputError(
            f"resources.cluster={resources.cluster}: PREFECT_API_URL is not set; processes on a cluster report to a server "
            "that all of them reach (`prefect server start`)"
        )


def task_runner(resources: ResourcesConfig, stage: str) -> TaskRunner[Any]:
    """The task runner of a stage flow, by the flow's name.

    Raises:
        InputError: see :func:`check_cluster`.
    """
    if resources.cluster is None or stage not in ON_CLUSTER:
        return ThreadPoolTaskRunner(max_workers=resources.parallel)
    check_cluster(resources)
    if resources.cluster == "local" and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on all addresses and runs what it is told; it looks at this once, when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from flows.ray_runner import cluster_runner

    return cluster_runner(resources, gpus=ON_CLUSTER[stage] and resources.device == "cuda")
