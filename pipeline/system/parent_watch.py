"""A child that ends with whoever started it, however that one ended.

A killed flow cannot tell its children to stop, and an orphan that goes on labelling would work beside the restarted run.
The starter holds the writing end of the child's standard input; when the starter is gone the input ends, also for what
a launcher started in between. A program that knows nothing of this is started by ``python -m pipeline.system.parent_watch MODULE ...``.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

LIFELINE = "GLIP_SELF_TRAIN_LIFELINE"
"""Environment variable: set to "stdin" by a starter that holds the other end."""


LEAVE_SECONDS = 20.0
"""What a program of somebody else's may take to end in order when its starter is gone."""


def exit_with_parent() -> None:
    """From now on end this process when its standard input ends, if the starter asked for that."""
    if os.environ.get(LIFELINE) == "stdin":
        _follow(end_at_once)


def _follow(end: Callable[[], None]) -> None:
    threading.Thread(target=_watch, args=(end,), name="lifeline", daemon=True).start()


def _watch(end: Callable[[], None]) -> None:
    try:
        while os.read(sys.stdin.fileno(), 4096):
            pass
    except (OSError, ValueError):
        return  # no input to watch
    end()


def end_at_once() -> None:
    """As SIGTERM does; what is written is atomic, so nothing needs tidying."""
    os._exit(143)


def end_in_order() -> None:
    """SIGTERM to this process; when that has not helped, SIGKILL to what it started, too."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LEAVE_SECONDS)
    with suppress(OSError):
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
    end_at_once()


def run_module(module: str, *arguments: str) -> None:
    """Run another module as ``python -m`` does, and end it in order when the standard input ends, as its starter is gone then."""
    _follow(end_in_order)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run_module(*sys.argv[1:])
