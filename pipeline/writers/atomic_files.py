"""The files of an export: they grow in temporary ones and appear together, when all of it is written."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from types import TracebackType
from typing import IO

from pipeline.io.atomic import HashingFile, OutputFile, atomic_file
from pipeline.io.paths import join

COPY = 1 << 20


class Sink:
    """Opens files below ``out``, a local folder or a URL. Leaving it without :meth:`commit` leaves nothing."""

    def __init__(self, out: str) -> None:
        self.out = out
        self._stack = ExitStack()
        self._files: dict[str, HashingFile] = {}

    def open(self, name: str) -> HashingFile:
        """A file to write. What was opened first appears last, so the file that leads to the others comes first."""
        self._files[name] = self._stack.enter_context(atomic_file(join(self.out, name)))
        return self._files[name]

    def spool(self) -> IO[bytes]:
        """Room for what comes later in a file than it is known."""
        return self._stack.enter_context(tempfile.TemporaryFile(prefix="glip-self-train-"))

    def commit(self) -> dict[str, OutputFile]:
        """Let the files appear; their sizes and digests."""
        done = {name: file.summary() for name, file in sorted(self._files.items())}
        self._stack.close()
        return done

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind or _NotCommitted, error or _NotCommitted(), at)


class _NotCommitted(Exception):
    """Lets the open files go, so that they remove their temporaries."""


class Rows:
    """The elements of a JSON list, a line each, without its brackets."""

    def __init__(self, file: IO[bytes] | HashingFile) -> None:
        self._file = file
        self.count = 0

    def add(self, row: bytes) -> None:
        """Append an element."""
        self._file.write(b",\n" + row if self.count else b"\n" + row)
        self.count += 1


def pour(spool: IO[bytes], file: HashingFile) -> None:
    """All of a spool into a file."""
    spool.seek(0)
    while block := spool.read(COPY):
        file.write(block)
