"""File locks between the processes of one machine. The kernel releases a dead holder's locks."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import InputError

LOCKS = "GLIP_SELF_TRAIN_LOCKS"
"""Environment variable: lock folder, the same for all processes that share a resource."""


def lock_folder() -> Path:
    """Folder of this machine's locks, shared by all users (TMPDIR may be private to a job)."""
    return Path(os.environ.get(LOCKS) or "/tmp/glip-self-train-locks")


@contextmanager
def host_lock(name: str) -> Iterator[bool]:
    """Try to acquire the lock ``name`` without waiting, also against threads; yields the success.

    Raises:
        InputError: the lock folder cannot be used.
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
            finally:  # closing is not enough: a process forked meanwhile holds the same open file
                fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    """Open or create the lock file. It is never removed: a lock on a deleted file is no lock."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(FileNotFoundError):
        return os.open(path, flags)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):  # another user created it first
            path.parent.chmod(0o1777)
    with suppress(FileExistsError):
        handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
        os.fchmod(handle, 0o644)  # regardless of the umask: other users must be able to open it
        return handle
    return os.open(path, flags)
