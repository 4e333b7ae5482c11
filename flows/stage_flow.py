"""Flows of their own that work in a run's folder: one at a time, as each writes the settings there that its children read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from prefect import flow
from prefect.flows import Flow
from prefect.logging import get_run_logger

from flows.job_builder import folder_of
from flows.notifications import FAILURE_HOOKS
from pipeline.execution.folder_lock import folder_lock

P = ParamSpec("P")
R = TypeVar("R")


def stage_flow(name: str, *, run_name: str | None = None) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """``@flow`` for a stage, whose parameter ``out`` is the run's folder. As a part of a run it shares the run's hold on it."""

    def made(stage: Callable[P, R]) -> Flow[P, R]:
        # its annotations as types: Prefect would look for their names in this module
        signature = inspect.signature(stage, eval_str=True)

        @wraps(stage)
        def alone(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            with folder_lock(folder_of(given.arguments["out"]), get_run_logger().warning):
                return stage(*args, **kwargs)

        alone.__signature__ = signature  # type: ignore[attr-defined]
        return flow(name=name, flow_run_name=run_name or name, **FAILURE_HOOKS)(alone)

    return made
