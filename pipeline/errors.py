"""Errors that the command line reports as one line. Exit code 2: invalid input; 1: the run failed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Invalid path, file, key or setting given by the user. The message states what is wrong and
    what is accepted.
    """

    exit_code = 2


class RunError(Exception):
    """Failure of a run with valid inputs, such as too many failed samples or a diverged training."""

    exit_code = 1


class StageError(RunError):
    """Failure that concerns every shard of a stage, such as a full disk: the stage ends at once."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` if ``name`` resembles a known name, else `` (known: X, Y)``; "" if
    ``known`` is empty.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(names)})" if names else ""
