"""Watch of a deployed run over its own cancellation, for when its worker has died.

Prefect starts each run in a session of its own, and a worker that replaces a dead one does not know
its runs. A run without a worker would continue after it is cancelled or ``self-train up`` has ended.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.local_server import UP
from flows.subprocess_jobs import ENDING
from pipeline.system.parent_watch import exit_immediately, terminate
from pipeline.system.process_identity import process_start

LOOK_SECONDS = 10.0
PATIENCE = 4
"""Looks at a cancelling run until it ends itself; a living worker ends it well before."""
_WATCHED = threading.Lock()


def end_unwanted() -> None:
    """Watch a run that a worker started; end this process when nobody else would.

    That is when the run is cancelled and no worker ends it, or the ``self-train up`` that started it is
    gone. Only the first call in a process has an effect.
    """
    run = os.environ.get("PREFECT__FLOW_RUN_ID")
    if run and flow_run.id is not None and _WATCHED.acquire(blocking=False):
        threading.Thread(target=_watch, args=(UUID(run),), name="orphan", daemon=True).start()


def _watch(run: UUID) -> None:
    up, cancelled = int(os.environ.get(UP, "0")), 0
    since = process_start(up) if up else None
    while True:
        time.sleep(LOOK_SECONDS)
        if ENDING.is_set():
            continue  # the run is already being ended
        # neither is logged: the first to write to a dead worker's pipe is ended by rich (SystemExit)
        if since is not None and process_start(up) != since:
            terminate()
        cancelled = cancelled + 1 if _cancelling(run) else 0
        if cancelled >= PATIENCE:
            with suppress(Exception), get_client(sync_client=True) as client:
                client.set_flow_run_state(run, Cancelled(message="by itself, as its worker is gone"), force=True)
            exit_immediately()  # the children follow when their standard input ends


def _cancelling(run: UUID) -> bool:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run).state
    except Exception:  # an unreachable server is no reason to end
        return False
    return state is not None and state.is_cancelling()
