"""One run, or one training, at a time in a folder: checkpoints are saved there, and two would remove each other's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.io.claims import STILL_SECONDS, Claims

PATIENCE = STILL_SECONDS + 30
"""Who was cancelled, or whose machine is gone, needs a while to leave its folder; a living one is not waited for any longer."""
LOOK_AGAIN = 1.0
_HELD: set[tuple[Path, str]] = set()
"""What this process has: a round is a flow of its own, and a part of a run, too."""


@contextmanager
def alone_in(
    folder: Path, waiting: Callable[[str], None], patience: float | None = None, *, name: str = "run"
) -> Iterator[None]:
    """Hold a folder, made if it is not there. ``waiting`` is told once who has it; a holder that died loses it.

    Args:
        patience: seconds to wait for a living one; PATIENCE if None.
        name: what is alone there; others by the same name are kept out.

    Raises:
        InputError: another one has it when that is over.
    """
    folder, patience = folder.resolve(), PATIENCE if patience is None else patience
    if (folder, name) in _HELD:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    claims = Claims(folder)
    try:
        deadline, told = time.monotonic() + patience, False
        while not claims.take(name):
            who = f"{folder}: another {name} works there ({claims.holder(name) or 'it is ending'})"
            if time.monotonic() > deadline:
                raise InputError(f"{who}; wait for its end, cancel it, or give another folder")
            if not told:
                waiting(f"{who}; waiting up to {patience:.0f} s for its end")
            told = True
            time.sleep(LOOK_AGAIN)
        _HELD.add((folder, name))
        yield
    finally:
        _HELD.discard((folder, name))
        claims.close()
