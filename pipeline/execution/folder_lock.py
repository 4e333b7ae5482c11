"""One run, or one training, at a time in a folder: checkpoints are saved there, and two would remove each other's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, RunError
from pipeline.execution.claims import STILL_SECONDS, Claims

PATIENCE = STILL_SECONDS + 30
"""Who was cancelled, or whose machine is gone, needs a while to leave its folder; a living one is not waited for any longer."""
LOOK_AGAIN = 1.0


@dataclass(frozen=True)
class FolderLock:
    """A folder that this process has for itself."""

    folder: Path
    name: str
    claims: Claims

    def check(self) -> None:
        """Ask again, before something is written that another one must not find.

        Raises:
            RunError: it was lost: nothing was heard of this process for so long that another one took over.
        """
        if not self.claims.holds(self.name):
            who = self.claims.holder(self.name) or "somebody who has left"
            raise RunError(
                f"{self.folder}: another {self.name} took over ({who}), as this one had stood still; it ends here"
            )


_HELD: dict[tuple[Path, str], FolderLock] = {}
"""What this process has: a round is a flow of its own, and a part of a run, too."""


@contextmanager
def folder_lock(
    folder: Path, waiting: Callable[[str], None], patience: float | None = None, *, name: str = "run"
) -> Iterator[FolderLock]:
    """Hold a folder, made if it is not there. ``waiting`` is told once who has it; a holder that died loses it.

    Args:
        patience: seconds to wait for a living one; PATIENCE if None.
        name: what is alone there; others by the same name are kept out.

    Raises:
        InputError: another one has it when that is over.
    """
    folder, patience = folder.resolve(), PATIENCE if patience is None else patience
    if (folder, name) in _HELD:
        yield _HELD[folder, name]
        return
    folder.mkdir(parents=True, exist_ok=True)
    held = FolderLock(folder, name, Claims(folder))
    try:
        deadline, told = time.monotonic() + patience, False
        while not held.claims.take(name):
            who = f"{folder}: another {name} works there ({held.claims.holder(name) or 'it is ending'})"
            if time.monotonic() > deadline:
                raise InputError(f"{who}; wait for its end, cancel it, or give another folder")
            if not told:
                waiting(f"{who}; waiting up to {patience:.0f} s for its end")
            told = True
            time.sleep(LOOK_AGAIN)
        _HELD[folder, name] = held
        try:
            yield held
        finally:
            del _HELD[folder, name]
    finally:
        held.claims.close()
