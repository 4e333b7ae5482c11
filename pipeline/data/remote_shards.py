"""Remote training shards, read by byte ranges, a record at a time, without local copies."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pipeline.errors import InputError, RunError
from pipeline.io.files import StoreError, open_file, read_range

CHUNK_BYTES = 1 << 20
"""Size of a read when a shard is read sequentially."""


@contextmanager
def _run_errors(url: str) -> Iterator[None]:
    """Convert a store's error that remains after all retries to a RunError that names the shard."""
    try:
        yield
    except StoreError as error:
        raise RunError(str(error)) if error.no_answer else error from None
    except (InputError, RunError):
        raise
    except Exception as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{url}: no answer from its store ({first})") from error


def read_exactly(url: str, offset: int, size: int) -> bytes:
    """Read exactly ``size`` bytes of a remote object from ``offset`` on.

    Raises:
        RunError: the object is missing, access is denied, the number of bytes differs, or the store
            does not answer. Not an InputError, for which a training would replace the record by
            another and no longer be reproducible.
    """
    try:
        with _run_errors(url):
            data = read_range(url, offset, size) if size else b""
    except InputError as error:
        raise RunError(str(error)) from None
    if len(data) != size:
        raise RunError(
            f"{url}: {len(data)} bytes from byte {offset} on, want {size}; has it been replaced since the start, or "
            "does its server not support range requests?"
        )
    return data


@contextmanager
def tar_stream(url: str) -> Iterator[tarfile.TarFile]:
    """Open a remote tar for one sequential pass, which downloads all of it.

    Raises:
        InputError: the object is missing, or access is denied.
        RunError: the store does not answer.
        TarError: not a tar, or truncated.
    """
    with _run_errors(url):
        source = open_file(url)
    with source:
        file = _RunErrorFile(url, source)
        with tarfile.open(fileobj=file, mode="r|", bufsize=CHUNK_BYTES) as tar:  # type: ignore[call-overload]
            yield tar


class _RunErrorFile:
    """Remote file whose read errors are RunErrors, to tell them from damage of the tar."""

    def __init__(self, url: str, file: IO[bytes]) -> None:
        self._url, self._file = url, file

    def read(self, size: int) -> bytes:
        with _run_errors(self._url):
            return self._file.read(size)
