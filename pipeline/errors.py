"""Errors that a command shows as one line. Exit code 2: the input is wrong; 1: the run failed."""

from __future__ import annotations


class InputError(Exception):
    """A path, file, key or setting given by the user is wrong. The message says what and what would be right."""

    exit_code = 2


class RunError(Exception):
    """The inputs were fine but the work could not be finished (too many losses, a diverged training)."""

    exit_code = 1
