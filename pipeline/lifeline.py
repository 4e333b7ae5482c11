"""A child that ends with whoever started it, however that one ended.

A killed flow cannot tell its children to stop, and an orphan that goes on labelling would work beside the restarted run.
The starter holds the writing end of the child's standard input; when the starter is gone the input ends, also for what
a launcher started in between.
"""

from __future__ import annotations

import os
import sys
import threading

LIFELINE = "GLIP_SELF_TRAIN_LIFELINE"
"""Environment variable: set to "stdin" by a starter that holds the other end."""


def follow_starter() -> None:
    """From now on end this process when its standard input ends, if the starter asked for that."""
    if os.environ.get(LIFELINE) == "stdin":
        threading.Thread(target=_watch, name="lifeline", daemon=True).start()


def _watch() -> None:
    try:
        while os.read(sys.stdin.fileno(), 4096):
            pass
    except (OSError, ValueError):
        return  # no input to watch
    os._exit(143)  # as after SIGTERM; what is written is atomic, so nothing needs tidying
