"""Notification of a failed run through a Prefect notification block: Slack, mail, a web hook."""

from __future__ import annotations

import logging
import os
from typing import Any

from prefect.blocks.core import Block

log = logging.getLogger("glip_self_train")

NOTIFY = "GLIP_SELF_TRAIN_NOTIFY"
"""Environment variable of the worker: TYPE/NAME of a notification block, such as slack-webhook/on-call.

The block keeps the address, which is secret: it enters no parameters, logs or artifacts."""


def notify(flow: Any, flow_run: Any, state: Any) -> None:
    """Notify of a failed flow run; an error here is only logged.

    A subflow sends nothing: if its failure matters, the parent run fails too.
    """
    slug = os.environ.get(NOTIFY)
    if not slug or flow_run.parent_task_run_id is not None:
        return
    try:
        block: Any = Block.load(slug)
        words = f"{flow.name} {flow_run.name} ({flow_run.id}): {state.name}. {state.message or ''}".strip()
        block.notify(body=words, subject=f"{flow.name}: {state.name}")
    except Exception as error:
        log.warning("no notification through %s: %s", slug, type(error).__name__)  # its text may hold the address


FAILURE_HOOKS: dict[str, Any] = {"on_failure": [notify], "on_crashed": [notify]}
"""Hooks of every deployed flow: ``@flow(name=..., **FAILURE_HOOKS)``."""
