"""Start-up and exit of a DataLoader's worker processes."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from multiprocessing.util import Finalize

_LAST = -1000  # after the finalisers that flush the worker's queues


def prepare_worker() -> None:
    """Prepare a worker process: no tokenizer threads, and an exit without the parent's hooks.

    Libraries of the parent (Prefect's client, anyio) register hooks that stop their threads at
    exit. A forked worker inherits the hooks without the threads; a hook that raises would make a
    worker that finished look like one that failed.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    Finalize(None, _exit_without_hooks, exitpriority=_LAST)


def _exit_without_hooks() -> None:
    if sys.exc_info()[0] is None:  # else multiprocessing has to print a traceback and set the exit status
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError, OSError):  # closed, or None
                stream.flush()
        os._exit(0)
