"""Output files of an export, which appear together at its end."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from types import TracebackType
from typing import IO

from pipeline.io.atomic import HashingFile, OutputFile, atomic_file
from pipeline.io.paths import join


class Sink:
    """Opens files below a folder or URL. Without :meth:`commit` all are discarded on exit."""

    def __init__(self, out: str) -> None:
        self.out = out
        self._stack = ExitStack()
        self._files: dict[str, HashingFile] = {}

    def open(self, name: str) -> HashingFile:
        """Open a file. Files appear in reverse order: open one that refers to others first."""
        self._files[name] = self._stack.enter_context(atomic_file(join(self.out, name)))
        return self._files[name]

    def spool(self) -> IO[bytes]:
        """Open a temporary file, for data that comes before its position in the output is reached."""
        return self._stack.enter_context(tempfile.TemporaryFile(prefix="glip-self-train-"))

    def commit(self) -> dict[str, OutputFile]:
        """Publish the files; returns their sizes and digests."""
        summaries = {name: file.summary() for name, file in sorted(self._files.items())}
        self._stack.close()
        return summaries

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # an error, even where there was none, makes the open files remove their temporary files
        self._stack.__exit__(kind or RuntimeError, error or RuntimeError("not committed"), at)


class JsonRows:
    """Writes the elements of a JSON list, one a line, without brackets."""

    def __init__(self, file: IO[bytes] | HashingFile) -> None:
        self._file = file
        self.count = 0

    def add(self, row: bytes) -> None:
        """Append an element."""
        self._file.write(b",\n" + row if self.count else b"\n" + row)
        self.count += 1
