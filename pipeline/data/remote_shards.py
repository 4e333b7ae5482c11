"""Training shards behind a URL: read by ranges, a record at a time, so that a set may be larger than any disk and leaves nothing on one."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pipeline.errors import InputError, RunError
from pipeline.io.files import open_file, read_range

STEP = 1 << 20
"""Bytes taken at a time of a shard that is read from end to end."""


@contextmanager
def _answers(url: str) -> Iterator[None]:
    """A store's last failure, when it was asked again for long enough, as an error that names the shard."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{url}: no answer from its store ({first})") from error


def read_place(url: str, offset: int, size: int) -> bytes:
    """Exactly these bytes of an object.

    Raises:
        RunError: it is gone, access is refused, it gives other than so many bytes, or its store does not answer. No InputError: a training
            would count the record as unusable and take another, and be another training.
    """
    try:
        with _answers(url):
            data = read_range(url, offset, size) if size else b""
    except InputError as error:
        raise RunError(str(error)) from None
    if len(data) != size:
        raise RunError(
            f"{url}: {len(data)} bytes from byte {offset} on, want {size}; has it been replaced since the start, or does its server "
            "give no parts of files?"
        )
    return data


@contextmanager
def tar_stream(url: str) -> Iterator[tarfile.TarFile]:
    """An object as a tar that is read once, from its beginning to its end; what is skipped is fetched too, and kept nowhere.

    Raises:
        InputError, RunError: as :func:`read_place`. TarError: no tar, or it ends too early.
    """
    with _answers(url):
        source = open_file(url)
    with closing(source), tarfile.open(fileobj=_Named(url, source), mode="r|", bufsize=STEP) as tar:  # type: ignore[call-overload]
        yield tar


class _Named:
    """A remote file whose errors are no tar's."""

    def __init__(self, url: str, file: object) -> None:
        self._url, self._file = url, file

    def read(self, size: int) -> bytes:
        with _answers(self._url):
            return self._file.read(size)  # type: ignore[attr-defined]
