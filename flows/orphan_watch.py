"""A deployed run whose worker died goes on without it, and then nobody would end it: not who cancels it, nor ``self-train up`` when it ends.

Prefect gives each run a session of its own, and a worker that takes a dead one's place knows nothing of its runs. So a run looks for itself
whether it is wanted.
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
"""Looks at a run that is to be cancelled until it ends itself; a worker that lives has ended it long before."""
_WATCHED = threading.Lock()


def end_unwanted() -> None:
    """From now on end this process when its run is cancelled and no worker sees to it, or the ``self-train up`` that started it is gone.

    Of a run that a worker started; any other has somebody at its terminal. Once a process; more calls change nothing.
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
            continue  # somebody sees to it
        # no word of either in the log: the first to write to a dead worker's pipe is ended by rich (SystemExit)
        if since is not None and process_start(up) != since:
            terminate()
        cancelled = cancelled + 1 if _cancelling(run) else 0
        if cancelled >= PATIENCE:
            with suppress(Exception), get_client(sync_client=True) as client:
                client.set_flow_run_state(run, Cancelled(message="by itself, as its worker is gone"), force=True)
            exit_immediately()  # and its children, which see their lifeline end


def _cancelling(run: UUID) -> bool:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run).state
    except Exception:  # a server that is away is no reason to end, nor to stop looking
        return False
    return state is not None and state.is_cancelling()
