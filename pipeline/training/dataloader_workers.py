"""What a loader's worker is told first, and how it ends."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from multiprocessing.util import Finalize

_LAST = -1000  # behind the finalisers that flush the worker's queues


def prepare_worker() -> None:
    """In a worker, once: its tokenizers use no threads of their own, and it ends without its parent's hooks.

    Libraries of the parent (Prefect's client, anyio) have hooks that end their threads before the interpreter does. A fork
    has the hooks, but not the threads: one that raises makes a worker that did all its work look like one that broke down.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    Finalize(None, _leave, exitpriority=_LAST)


def _leave() -> None:
    if sys.exc_info()[0] is None:  # else multiprocessing has a traceback to print, and a code to exit with
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError, OSError):  # closed, or none
                stream.flush()
        os._exit(0)
