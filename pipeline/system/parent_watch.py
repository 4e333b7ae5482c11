"""Exit a child process when its parent dies, even by SIGKILL.

A killed flow cannot stop its children, and an orphan that keeps labelling would compete with the
restarted run. The parent holds the write end of the child's standard input. When the parent dies,
reading returns end of file, also in grandchildren started through a launcher. Programs without this
watch run as ``python -m pipeline.system.parent_watch MODULE ...``.
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
"""Environment variable: "stdin" if the parent holds the write end of the child's stdin."""

GRACE_SECONDS = 20.0
"""Time between SIGTERM and SIGKILL for a third-party program whose parent has died."""


def exit_with_parent() -> None:
    """Exit at the end of standard input, from now on, if the parent set :data:`LIFELINE`."""
    if os.environ.get(LIFELINE) == "stdin":
        _watch_stdin(exit_immediately)


def _watch_stdin(at_end: Callable[[], None]) -> None:
    def watch() -> None:
        try:
            while os.read(sys.stdin.fileno(), 4096):
                pass
        except (OSError, ValueError):
            return  # no standard input
        at_end()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def exit_immediately() -> None:
    """Exit without clean-up, with SIGTERM's exit code, which atomic output files do not need."""
    os._exit(143)


def terminate() -> None:
    """Send SIGTERM to this process; after :data:`GRACE_SECONDS` SIGKILL it and its process group."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    with suppress(OSError):
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
    exit_immediately()


def run_module(module: str, *arguments: str) -> None:
    """Run a module as ``python -m`` does, and terminate it at the end of standard input."""
    _watch_stdin(terminate)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run_module(*sys.argv[1:])
