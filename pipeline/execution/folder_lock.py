"""Locks on output folders, as two runs or trainings would remove each other's checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, RunError
from pipeline.execution.claims import STILL_SECONDS, Claims

PATIENCE = STILL_SECONDS + 30
"""Default seconds to wait for a lock: a cancelled process needs a while to end, and the claim of a
lost host a while to expire.
"""
LOOK_AGAIN = 1.0


@dataclass(frozen=True)
class FolderLock:
    """A lock that this process holds on a folder."""

    folder: Path
    name: str
    claims: Claims

    def check(self) -> None:
        """Check that the lock is still held, before writing what another process would read.

        Raises:
            RunError: another process took over, as this one did not renew its claim in time.
        """
        if not self.claims.holds(self.name):
            who = self.claims.holder(self.name) or "which has ended since"
            raise RunError(
                f"{self.folder}: another {self.name} took over ({who}), as this one did not renew its claim in time; "
                "it ends here"
            )


_HELD: dict[tuple[Path, str], FolderLock] = {}
"""Locks of this process. They are re-entrant: a round may be a flow or a part of a run."""


@contextmanager
def folder_lock(
    folder: Path, waiting: Callable[[str], None], patience: float | None = None, *, name: str = "run"
) -> Iterator[FolderLock]:
    """Hold the lock of a folder, which is created if missing. A dead holder loses its lock.

    Args:
        waiting: called once with a line that names the holder, if there is one to wait for.
        patience: seconds to wait for a live holder; PATIENCE if None.
        name: name of the lock, as in messages; locks of other names do not conflict.

    Raises:
        InputError: another process still holds it after ``patience``.
    """
    folder, patience = folder.resolve(), PATIENCE if patience is None else patience
    if (folder, name) in _HELD:
        yield _HELD[folder, name]
        return
    folder.mkdir(parents=True, exist_ok=True)
    with closing(Claims(folder)) as claims:
        deadline, announced = time.monotonic() + patience, False
        while not claims.take(name):
            who = f"{folder}: another {name} works there ({claims.holder(name) or 'it is ending'})"
            if time.monotonic() > deadline:
                raise InputError(f"{who}; wait for its end, cancel it, or give another folder")
            if not announced:
                waiting(f"{who}; waiting up to {patience:.0f} s for its end")
            announced = True
            time.sleep(LOOK_AGAIN)
        _HELD[folder, name] = held = FolderLock(folder, name, claims)
        try:
            yield held
        finally:
            del _HELD[folder, name]
