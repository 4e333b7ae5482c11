"""Ctrl-C, a closed terminal or SIGTERM on a run of this process: its children end, its states are told, and it says how to go on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import click

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TWICE_SECONDS = 1.0
"""A signal sooner than this after the first is the same one: a terminal and a wrapper may both send it."""


class Interrupted(KeyboardInterrupt):
    """The process was asked to end by the signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def interruptible(words: str) -> Iterator[None]:
    """Within, the first signal raises Interrupted in the main thread and ends the process in order; the second ends it at once.

    The exit code is 128 and the signal's number, and ``words`` say how to go on. A signal that is ignored (nohup) stays so.
    """
    first: list[tuple[int, float]] = []

    def told(number: int, _: FrameType | None) -> None:
        if not first:
            first.append((number, time.monotonic()))
            say("self-train: ending; once more ends it at once")
            raise Interrupted(number)
        if time.monotonic() - first[0][1] > TWICE_SECONDS:
            _end_now(number)

    before: dict[signal.Signals, Any] = {}
    for sign in SIGNALS:
        if signal.getsignal(sign) != signal.SIG_IGN:
            before[sign] = signal.signal(sign, told)
    try:
        yield
    except BaseException as error:
        number = _number(error)
        if number is None and first and isinstance(error, Exception):
            number = first[0][0]  # something that failed on the way out, such as a server that is gone
        if number is None:
            raise
        say(f"self-train: interrupted; {words}")
        sys.exit(128 + number)
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _number(error: BaseException) -> int | None:
    """The signal that an exception stands for."""
    if isinstance(error, Interrupted):
        return error.number
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    from prefect.exceptions import TerminationSignal

    return error.signal if isinstance(error, TerminationSignal) else None


def _end_now(number: int) -> None:
    """End the children and this process without telling anybody."""
    from flows.subprocess_jobs import end_children_now

    end_children_now()
    os._exit(128 + number)  # a temporary server notices that by itself


def say(words: str) -> None:
    """A line to whoever is still there to read it."""
    with suppress(OSError):  # the terminal may be gone
        click.echo(words, err=True)
