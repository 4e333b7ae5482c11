"""Atomic files, and the commit that makes a shard's output count as done.

An output appears under its final name only when it is whole (temporary name, fsync, rename). The shard's report is
written last: a shard is done if its report carries the right fingerprint and the files it names are there with the
sizes it names. Killing the process anywhere leaves either a done shard or one that will be made again. Behind a URL the finished file is
sent under its final name, where it appears whole or not at all.
"""

from __future__ import annotations

import hashlib
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

TOGETHER = 1 << 20
"""Bytes that go to the system at once: samples of a few kilobytes each would cost more in calls than in copying."""


class OutputFile(BaseModel):
    """Size and digest of one committed file."""

    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str


class HashingFile:
    """A binary file opened for writing that keeps the size and sha256 of what went through it. Not seekable."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._state = hashlib.sha256()
        self._hash = self._state.update
        self._bytes = 0

    def write(self, data: Any) -> int:
        view = data if type(data) is bytes else memoryview(data).cast("B")
        self._hash(view)
        self._bytes += len(view)
        return self._raw.write(view)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        self._raw.flush()

    def close(self) -> None:
        """Left to the owner of the raw file."""

    @property
    def closed(self) -> bool:
        return self._raw.closed

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def summary(self) -> OutputFile:
        """Size and digest of everything written so far."""
        return OutputFile(bytes=self._bytes, sha256=self._state.hexdigest())


@contextmanager
def atomic_file(path: str | Path, *, durable: bool = True, settled: bool = True) -> Iterator[HashingFile]:
    """Write ``path``, a local path or a URL, whole or not at all.

    A local file: a temporary one beside it, fsynced, then renamed over it. The temporary name is this process's own, so two
    runs on the same output cannot write into one another. A remote one is gathered in the folder for temporary files first.

    Args:
        durable: False spares the fsyncs of one of very many small files; :func:`settle` makes up for all of them.
        settled: the new name too outlives a power cut. A shard's output has no need of it: its report comes after it, is
            settled, and counts only if the output is there.
    """
    if is_url(path):
        with tempfile.NamedTemporaryFile(prefix="glip-self-train-") as spool:
            yield HashingFile(spool)
            spool.flush()
            write_remote(str(path), spool.name)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb", buffering=TOGETHER) as raw:
            yield HashingFile(raw)
            raw.flush()
            if durable:
                os.fsync(raw.fileno())
        os.replace(temporary, path)
        if durable and settled:
            _fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomic(path: str | Path, data: bytes | str, *, durable: bool = True) -> OutputFile:
    """Write bytes or text to ``path`` atomically; ``durable`` as of :func:`atomic_file`."""
    with atomic_file(path, durable=durable) as file:
        file.write(data.encode() if isinstance(data, str) else data)
        return file.summary()


def write_json(path: str | Path, value: Any) -> OutputFile:
    """Write a value as indented JSON with sorted keys, atomically."""
    return write_atomic(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def settle(out: str | Path) -> None:
    """See that all files written below a local folder outlive a power cut, before one is written that names them."""
    if not is_url(out):
        os.sync()


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
