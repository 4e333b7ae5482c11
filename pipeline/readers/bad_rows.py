"""Rows of annotation files that cannot be read: each costs itself, unless none can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import InputError
from pipeline.io.tars import TarProblems

MAX_BAD_ROWS = 100
"""The set is refused if its first rows, this many, are all invalid."""
ROW_ERRORS = (InputError, AttributeError, TypeError, KeyError, IndexError, ValueError)
"""Errors of a row of unexpected content."""


class BadRows:
    """Counts the rows of a set that cannot be read.

    Attributes:
        good: number of rows that were read.
        samples: lost samples by reason, also those of damaged tars, and the first messages.
        regions: lost regions by reason; its messages are those of ``samples``.
    """

    def __init__(self) -> None:
        self.good = self._bad = 0
        self.samples = TarProblems()
        self.regions = TarProblems(notes=self.samples.notes)
        self._first: Exception | None = None

    @contextmanager
    def row(self, where: str = "", *, hide: str = "") -> Iterator[None]:
        """Read a row in the block: it is good, or its error is counted, as by :meth:`add`."""
        try:
            yield
        except ROW_ERRORS as error:
            self.add(error, where, hide=hide)
        else:
            self.good += 1

    def add(self, error: Exception, where: str = "", *, unit: str = "samples", hide: str = "") -> None:
        """Count a row. Raises the first row's error if no row of the set is good so far, and there
        are many.

        Args:
            where: position of the row, for errors that do not begin with it.
            unit: "samples", or "regions" for a row of one region.
            hide: folder to leave out of the message.
        """
        self._first = self._first or error
        self._bad += 1
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        text = text if text.startswith(where) else f"{where}: {text}"
        problems, reason = (self.samples, "bad_labels") if unit == "samples" else (self.regions, "bad_row")
        problems.add(reason, text.replace(hide, "").splitlines()[0][:300])
        if self._bad >= MAX_BAD_ROWS:
            self.check()

    def check(self) -> None:
        """Raise the first row's error if there are bad rows and no good ones."""
        if self._first is not None and not self.good:
            raise self._first

    def header(self) -> dict[str, Any]:
        """Fields of the set's header; none if no row is bad. Raises as :meth:`check`."""
        self.check()
        fields = {"notes": self.samples.notes, "lost_samples": self.samples.counts, "lost": self.regions.counts}
        return {name: value for name, value in fields.items() if value}
