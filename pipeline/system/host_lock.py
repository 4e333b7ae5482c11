"""Locks among the processes of one machine. The kernel gives a lock back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import InputError

LOCKS = "GLIP_SELF_TRAIN_LOCKS"
"""Environment variable: another folder of this machine for its locks. It must be the same for all who share what is locked."""


def lock_folder() -> Path:
    """Where this machine's locks lie, for every user of it (not TMPDIR, which may be a job's own)."""
    return Path(os.environ.get(LOCKS) or "/tmp/glip-self-train-locks")


@contextmanager
def host_lock(name: str) -> Iterator[bool]:
    """Hold the lock of this name, if nobody on this machine has it; gives whether we do. Threads exclude each other, too.

    Raises:
        InputError: the folder of locks cannot be used.
    """
    path = lock_folder() / f"{name.replace('/', '_')}.lock"
    try:
        handle = _open(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {LOCKS} may name another folder of this machine") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            try:
                yield True
            finally:  # closing is not enough: a process forked meanwhile has the handle, too
                fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    """The lock's file, which stays where it is: a lock on a file that was removed would exclude nobody."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(FileNotFoundError):
        return os.open(path, flags)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # somebody else was quicker
            path.parent.chmod(0o1777)
    with suppress(FileExistsError):
        handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
        os.fchmod(handle, 0o644)  # whatever the umask: others must be able to open it
        return handle
    return os.open(path, flags)
