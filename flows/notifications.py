"""Word of a run that failed, through a notification block of Prefect's: Slack, mail, a web hook, whatever the team has."""

from __future__ import annotations

import logging
import os
from typing import Any, TypedDict

log = logging.getLogger("glip_self_train")

NOTIFY = "GLIP_SELF_TRAIN_NOTIFY"
"""Environment of the worker: TYPE/NAME of a notification block, such as slack-webhook/on-call. Its address is a secret that the
block keeps; nothing of it gets into parameters, logs or artifacts."""


def notify(flow: Any, flow_run: Any, state: Any) -> None:
    """A hook of a flow. What goes wrong here is logged and ends nothing.

    A flow within another says nothing: if its failure matters, the outer one fails too, and is told of once.
    """
    slug = os.environ.get(NOTIFY)
    if not slug or flow_run.parent_task_run_id is not None:
        return
    from prefect.blocks.core import Block

    try:
        block: Any = Block.load(slug)
        words = f"{flow.name} {flow_run.name} ({flow_run.id}): {state.name}. {state.message or ''}".strip()
        block.notify(body=words, subject=f"{flow.name}: {state.name}")
    except Exception as error:
        log.warning("no notification through %s: %s", slug, type(error).__name__)  # its text may hold the address


class Told(TypedDict):
    """What a flow needs to be told of."""

    on_failure: list[Any]
    on_crashed: list[Any]


FAILURE_HOOKS: Told = {"on_failure": [notify], "on_crashed": [notify]}
"""Of every flow that is deployed: ``@flow(name=..., **FAILURE_HOOKS)``."""
