"""Small files that only one of several can have made, on a disk or in a bucket."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.io.files import filesystem, named_errors, patiently, read_bytes, remove
from pipeline.io.paths import is_url
from pipeline.io.temporaries import temporary_beside


@contextmanager
def one_at_a_time(folder: str | Path) -> Iterator[None]:
    """Keep this machine's other processes (and threads) that ask for the same folder out, for moments. Buckets and some network disks cannot."""
    handle = -1
    if not is_url(folder):
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle >= 0:
            with suppress(OSError):  # closing is not enough: a process forked meanwhile has the handle, too
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def create_exclusively(path: str | Path, data: bytes) -> bool:
    """Make a small file unless there is one of the name. Whether it was made."""
    if is_url(path):
        fs, inner = filesystem(str(path))

        def create() -> bool:
            if fs.exists(inner):
                return False
            try:
                fs.pipe_file(inner, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                    return False
                raise
            return True

        with named_errors(str(path)):
            return patiently(str(path), create)
    path = Path(path)
    temporary = temporary_beside(path)
    temporary.write_bytes(data)
    try:
        os.link(temporary, path)  # unlike a rename it fails if the name is taken, and the file is never half there
        return True
    except FileExistsError:
        # or a network disk had made the link, lost its answer, and was asked again
        return os.stat(temporary).st_nlink > 1
    except OSError:  # a file system without links
        with suppress(FileExistsError), open(path, "xb") as file:
            file.write(data)
            return True
        return False
    finally:
        temporary.unlink(missing_ok=True)


def remove_if(path: str | Path, data: bytes) -> bool:
    """Remove a small file if these are its bytes. Whether there is nothing of the name now, as far as we can tell.

    On a disk the file is moved away before it is looked at, so that one which was made meanwhile is not removed.
    """
    if is_url(path):
        if read_bytes(path) not in (None, data):
            return False
        remove(path)
        return True
    path = Path(path)
    aside = temporary_beside(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    try:
        if aside.read_bytes() == data:
            return True
        with suppress(OSError):
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)
