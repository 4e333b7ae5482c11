"""Decorator of the stage flows: one flow run at a time in a run's folder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, ParamSpec, TypeVar

from prefect import flow
from prefect.flows import Flow
from pydantic import Field

from flows.error_logs import shorten_error_logs
from flows.job_builder import folder_of
from flows.notifications import FAILURE_HOOKS
from flows.run_progress import working
from pipeline.config import SelfTrainConfig
from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError

shorten_error_logs()
P = ParamSpec("P")
R = TypeVar("R")


Recipe = Annotated[str | None, Field(description="a recipe's name, or its file where the run is: in place of config")]


def chosen_config(config: SelfTrainConfig, recipe: str | None, default: SelfTrainConfig) -> SelfTrainConfig:
    """The settings of a run, which are given as ``config`` or by a recipe's name or file.

    Raises:
        InputError: both are given, or there is no such recipe.
    """
    if recipe is None:
        return config
    if config != default:
        raise InputError(f"recipe: found {recipe} and a config of other settings than the demo's; want one of both")
    return load_recipe(recipe)


def stage_flow(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """``@flow`` of a stage that holds the lock of its folder ``out``; a subflow shares its parent's lock.

    The flow has a parameter more, ``recipe``, in place of ``config``.
    """

    def decorate(stage: Callable[P, R]) -> Flow[P, R]:
        # annotations as types: Prefect would resolve their names in this module
        inner = inspect.signature(stage, eval_str=True)
        more = inspect.Parameter("recipe", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Recipe)
        signature = inner.replace(parameters=[*inner.parameters.values(), more])

        @wraps(stage)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            values = dict(given.arguments)
            default = inner.parameters["config"].default
            values["config"] = chosen_config(values["config"], values.pop("recipe"), default)
            with working(folder_of(values["out"]), name):
                return stage(**values)  # type: ignore[call-arg]

        locked.__signature__ = signature  # type: ignore[attr-defined]
        run_name = f"{name}-round-{{round_number}}" if "round_number" in signature.parameters else name
        return flow(name=name, flow_run_name=run_name, **FAILURE_HOOKS)(locked)

    return decorate
