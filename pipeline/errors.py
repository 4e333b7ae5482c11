"""Errors that a command shows as one line. Exit code 2: the input is wrong; 1: the run failed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """A path, file, key or setting given by the user is wrong. The message says what and what would be right."""

    exit_code = 2


class RunError(Exception):
    """The inputs were fine but the work could not be finished (too many losses, a diverged training)."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` for a name that is like a known one, else `` (known: X, Y)``, or nothing where nothing is known."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(names)})" if names else ""
