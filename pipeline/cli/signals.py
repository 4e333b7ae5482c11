"""Orderly end of a command on Ctrl-C, a closed terminal or SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import click

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TWICE_SECONDS = 1.0
"""A signal within this time of the first is a duplicate: a terminal and a wrapper may both send it."""
END_SECONDS = 5.0
"""Time that a command has to end by itself. Outputs are atomic, so nothing is lost after it."""


@contextmanager
def interruptible(
    name: str, hint: str, at_once: Callable[[], None] = lambda: None, patience: float | None = END_SECONDS
) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread at the first signal; exit at once at the second.

    The exit code is 128 plus the signal's number, and ``hint`` is printed: how to resume. A signal
    that is ignored (nohup) stays ignored. Prefect takes SIGTERM during a flow run, ends the run, and
    sends the signal again to this handler.

    Args:
        name: the command, as in messages.
        at_once: called before an exit at once, to end children.
        patience: seconds after the first signal until it exits at once too; None: for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[tuple[int, float]] = []

    def exit_at_once(number: int) -> None:
        at_once()
        for child in sys.modules["multiprocessing"].active_children() if "multiprocessing" in sys.modules else ():
            child.kill()
        os._exit(128 + number)  # children with a lifeline end with this process

    def exit_saying(number: int) -> None:
        say(f"{name}: interrupted; {hint}")
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        exit_at_once(number)

    def handle(number: int, _: FrameType | None) -> None:
        if not first:
            first.append((number, time.monotonic()))
            say(f"{name}: ending; once more ends it at once")
            raise KeyboardInterrupt(signal.Signals(number).name)
        if time.monotonic() - first[0][1] > TWICE_SECONDS:
            exit_at_once(first[0][0])

    before: dict[signal.Signals, Any] = {}
    for sign in SIGNALS:
        if signal.getsignal(sign) != signal.SIG_IGN:
            before[sign] = signal.signal(sign, handle)
    try:
        with _watched(patience, exit_saying):
            yield
        if first:
            raise KeyboardInterrupt  # the block took it for its end
    except BaseException:  # also an error of the shutdown, such as a server that is gone
        if not first:
            raise
        if patience is not None:
            exit_saying(first[0][0])  # threads that still read or decode would be waited for
        say(f"{name}: interrupted; {hint}")
        sys.exit(128 + first[0][0])
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


@contextmanager
def _watched(patience: float | None, end: Callable[[int], None]) -> Iterator[None]:
    """Call ``end`` with a signal's number when the block still runs ``patience`` seconds after the signal.

    From a thread of its own: Python runs handlers in the main thread, which may be in a library's code for long.
    """
    if patience is None:
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()

    def watch() -> None:
        while (data := os.read(reading, 1)) and data[0] not in SIGNALS:
            pass
        if data and not over.wait(patience):
            end(data[0])

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join(1)
        os.close(reading)


def say(words: str) -> None:
    """Print a line to stderr, which may be closed."""
    with suppress(OSError):
        click.echo(words, err=True)
