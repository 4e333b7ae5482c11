"""Orderly end of a run in this process on Ctrl-C, a closed terminal or SIGTERM."""

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
"""A signal within this time of the first is a duplicate: a terminal and a wrapper may both send it."""


@contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread at the first signal; exit at once at the second.

    The exit code is 128 plus the signal's number, and ``hint`` is printed: how to resume. A signal
    that is ignored (nohup) stays ignored. Prefect takes SIGTERM during a flow run, ends the run, and
    sends the signal again to this handler.
    """
    first: list[tuple[int, float]] = []

    def handle(number: int, _: FrameType | None) -> None:
        if not first:
            first.append((number, time.monotonic()))
            say("self-train: ending; once more ends it at once")
            raise KeyboardInterrupt(signal.Signals(number).name)
        if time.monotonic() - first[0][1] > TWICE_SECONDS:
            from flows.subprocess_jobs import end_children_now

            end_children_now()
            os._exit(128 + number)  # a temporary server ends with this process

    before: dict[signal.Signals, Any] = {}
    for sign in SIGNALS:
        if signal.getsignal(sign) != signal.SIG_IGN:
            before[sign] = signal.signal(sign, handle)
    try:
        yield
    except BaseException:  # also an error of the shutdown, such as a server that is gone
        if not first:
            raise
        say(f"self-train: interrupted; {hint}")
        sys.exit(128 + first[0][0])
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def say(words: str) -> None:
    """Print a line to stderr, which may be closed."""
    with suppress(OSError):
        click.echo(words, err=True)
