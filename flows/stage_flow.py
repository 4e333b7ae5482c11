"""Decorator of the stage flows: one flow run at a time in a run's folder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from prefect import flow
from prefect.flows import Flow
from prefect.logging import get_run_logger

from flows.error_logs import shorten_error_logs
from flows.job_builder import folder_of
from flows.notifications import FAILURE_HOOKS
from pipeline.execution.folder_lock import folder_lock

shorten_error_logs()
P = ParamSpec("P")
R = TypeVar("R")


def stage_flow(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """``@flow`` of a stage that holds the lock of its folder ``out``; a subflow shares its parent's lock."""

    def decorate(stage: Callable[P, R]) -> Flow[P, R]:
        # annotations as types: Prefect would resolve their names in this module
        signature = inspect.signature(stage, eval_str=True)

        @wraps(stage)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            with folder_lock(folder_of(given.arguments["out"]), get_run_logger().warning):
                return stage(*args, **kwargs)

        locked.__signature__ = signature  # type: ignore[attr-defined]
        run_name = f"{name}-round-{{round_number}}" if "round_number" in signature.parameters else name
        return flow(name=name, flow_run_name=run_name, **FAILURE_HOOKS)(locked)

    return decorate
