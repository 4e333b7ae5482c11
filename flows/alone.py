"""One run at a time in a folder: a training saves its checkpoints there, and two would write over each other's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.io.claims import STILL_SECONDS, Claims

NAME = "run"
PATIENCE = STILL_SECONDS + 30
"""A run that was cancelled, or whose machine is gone, needs a while to leave its folder; a living one is not waited for any longer."""
LOOK_AGAIN = 1.0
_HELD: set[Path] = set()
"""Folders of runs of this process: a round is a flow of its own, and a part of a run, too."""


@contextmanager
def alone_in(folder: Path, waiting: Callable[[str], None], patience: float = PATIENCE) -> Iterator[None]:
    """Hold a run's folder, made if it is not there. ``waiting`` is told once who has it; a holder that died loses it.

    Raises:
        InputError: another run has it still after ``patience`` seconds.
    """
    folder = folder.resolve()
    if folder in _HELD:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    claims = Claims(folder)
    try:
        deadline, told = time.monotonic() + patience, False
        while not claims.take(NAME):
            who = f"{folder}: another run works there ({claims.holder(NAME) or 'it is ending'})"
            if time.monotonic() > deadline:
                raise InputError(f"{who}; wait for its end, cancel it, or give another folder")
            if not told:
                waiting(f"{who}; waiting up to {patience:.0f} s for its end")
            told = True
            time.sleep(LOOK_AGAIN)
        _HELD.add(folder)
        yield
    finally:
        _HELD.discard(folder)
        claims.close()
