"""Task runners of the stage flows: threads, each with a child process, or a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import secrets
from typing import Any

from prefect.settings import get_current_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipeline.config import ResourcesConfig
from pipeline.errors import InputError

ON_CLUSTER = ("parse-phrases", "pseudo-label")
"""Stages that run on a cluster, in processes that keep the loaded parser or teacher."""


def check_cluster(resources: ResourcesConfig) -> None:
    """Raise InputError if a run on a cluster lacks Ray, or a server that the cluster's machines can reach."""
    if resources.cluster is None:
        return
    if importlib.util.find_spec("prefect_ray") is None:
        raise InputError(
            f"resources.cluster={resources.cluster}: Ray is an extra of this project; pip install -e '.[ray]'"
        )
    if not get_current_settings().api.url:
        raise InputError(
            f"resources.cluster={resources.cluster}: PREFECT_API_URL is not set; processes on a cluster report to "
            "a server that all of them reach (`prefect server start`)"
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
        # Ray listens on all addresses and runs any request; it reads this once, on import
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from flows.ray_runner import cluster_runner

    return cluster_runner(resources)
