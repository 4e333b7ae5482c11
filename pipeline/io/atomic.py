"""Atomic file writes with size and SHA-256.

An output appears under its final name only when complete (temporary name, fsync, rename). A shard's
report is written last: the shard is done if the report has the right fingerprint and the files
listed in it exist with the listed sizes. A process killed at any point leaves either a finished
shard or one that is made again. Remote files are uploaded when finished, and stores show an object
only when it is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict

from pipeline.io.files import write_remote
from pipeline.io.paths import is_url
from pipeline.io.temporaries import temporary_beside

BUFFER_BYTES = 1 << 20
"""Write buffer: with samples of a few kilobytes, system calls would cost more than copying."""


class OutputFile(BaseModel):
    """Size and SHA-256 of one committed file."""

    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str


class HashingFile(io.RawIOBase):
    """Writable binary stream that computes size and SHA-256 of the data written.

    Not seekable. Closing it leaves ``raw`` open, which its owner flushes and closes.
    """

    def __init__(self, raw: IO[bytes], path: str | Path) -> None:
        """path: the name of the file in errors of writing."""
        self._raw, self._path = raw, path
        self._state = hashlib.sha256()
        self._hash = self._state.update
        self._bytes = 0

    def write(self, data: Any) -> int:
        view = data if type(data) is bytes else memoryview(data).cast("B")
        self._hash(view)
        self._bytes += len(view)
        try:
            return self._raw.write(view)
        except OSError as error:
            raise _named(error, self._path) from None

    def tell(self) -> int:
        return self._bytes

    def writable(self) -> bool:
        return True

    def summary(self) -> OutputFile:
        """Size and SHA-256 of everything written so far."""
        return OutputFile(bytes=self._bytes, sha256=self._state.hexdigest())


def _named(error: OSError, path: str | Path) -> OSError:
    """The error with the path of the file, which the system does not state when writing fails."""
    error.filename = str(path)
    return error


@contextmanager
def atomic_file(path: str | Path, *, durable: bool = True, durable_name: bool = True) -> Iterator[HashingFile]:
    """Write ``path``, a local path or a URL, completely or not at all.

    A local file is written to a temporary file in the same folder, fsynced and renamed. The
    temporary name is unique to the process, so two runs cannot write to the same file. A remote
    file is spooled to a local temporary file and uploaded.

    Args:
        durable: fsync the file. False for many small files, followed by one :func:`sync_all`.
        durable_name: fsync the folder too, so that the rename survives a power failure. Not needed
            for a shard's output: its report is written later with ``durable_name`` and counts only
            if the output exists.
    """
    if is_url(path):
        with tempfile.NamedTemporaryFile(prefix="glip-self-train-") as spool:
            yield HashingFile(spool, spool.name)
            try:
                spool.flush()
            except OSError as error:
                raise _named(error, spool.name) from None
            write_remote(str(path), spool.name)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb", buffering=BUFFER_BYTES) as raw:
            yield HashingFile(raw, path)
            try:
                raw.flush()
                if durable:
                    os.fsync(raw.fileno())
            except OSError as error:
                raise _named(error, path) from None
        os.replace(temporary, path)
        if durable and durable_name:
            fsync_path(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomic(path: str | Path, data: bytes | str, *, durable: bool = True) -> OutputFile:
    """Write bytes or text to ``path`` atomically; ``durable`` as in :func:`atomic_file`."""
    with atomic_file(path, durable=durable) as file:
        file.write(data.encode() if isinstance(data, str) else data)
        return file.summary()


def write_json(path: str | Path, value: Any) -> OutputFile:
    """Write ``value`` atomically as indented JSON with sorted keys."""
    return write_atomic(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def sync_all(out: str | Path) -> None:
    """Flush the files below a local folder to disk, before writing a file that refers to them."""
    if not is_url(out):
        os.sync()


def fsync_path(path: Path) -> None:
    """Flush a local file, or the names in a local folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
