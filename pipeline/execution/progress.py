"""Progress of long work: a bar on a terminal, periodic log lines, or the caller's own."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from pipeline.execution.reports import ShardReport, StageReport
from pipeline.io.atomic import write_json

log = logging.getLogger("glip_self_train")
PROGRESS_FILE = "GLIP_SELF_TRAIN_PROGRESS"
"""Environment variable: file to which a command writes its current :class:`ProgressNote`."""


class Progress(Protocol):
    """Receiver of a stage's progress towards a total of shards, steps or images.

    begin: ``before`` of the units were done by earlier runs; rates leave them out. advance: may be
    called within a shard; counts towards the total if its unit is that of ``begin``. shard: counts
    one shard towards the total. detail: a line of the stage's own figures. The default methods do
    nothing.
    """

    def begin(self, stage: str, total: int, unit: str = "shards", before: int = 0) -> None:
        return

    def advance(self, n: int, unit: str = "samples") -> None:
        return

    def detail(self, text: str) -> None:
        return

    def shard(self, report: ShardReport, skipped: bool) -> None:
        return

    def end(self, report: StageReport) -> None:
        return


class Silent(Progress):
    """Progress that shows nothing; base of implementations that need some of the methods."""


class ProgressNote(BaseModel):
    """Progress of a command: ``done`` of ``total`` units, ``before`` of them by earlier runs, and
    ``rate`` in ``rate_unit`` per second; or, in ``waiting``, the reason why it waits.
    """

    model_config = ConfigDict(extra="forbid")

    stage: str
    done: int
    total: int
    unit: str
    before: int = 0
    rate: float = 0.0
    rate_unit: str = ""
    seconds: float = 0.0
    waiting: str = ""
    detail: str = Field("", description="line of the stage's own figures, such as a training's loss")

    @property
    def seconds_left(self) -> float | None:
        """Estimate by the rate of this run; None before anything is done."""
        done = self.done - self.before
        return None if done <= 0 else self.seconds / done * (self.total - self.done)

    def words(self) -> str:
        """Return a line such as "3 of 40 shards, 12.5 images/s, 4 min left"."""
        if self.waiting:
            return self.waiting
        rate = f", {self.rate:,.1f} {self.rate_unit}/s" if self.rate_unit and self.rate else ""
        left = self.seconds_left
        time_left = "" if left is None or self.done >= self.total else f", {duration(left)} left"
        detail = f", {self.detail}" if self.detail else ""
        return f"{self.done:,} of {self.total:,} {self.unit}{detail or rate}{time_left}"


def duration(seconds: float) -> str:
    """Format seconds as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


class Terminal:
    """Show a tqdm bar on a terminal; elsewhere log a line every ``every`` seconds.

    ``note`` is the file of the :class:`ProgressNote`; default: the one that PROGRESS_FILE names.
    """

    def __init__(self, every: float = 10.0, note: str | None = None) -> None:
        self._every = every
        self._bar: Any = None
        self._file = note or os.environ.get(PROGRESS_FILE)

    def begin(self, stage: str, total: int, unit: str = "shards", before: int = 0) -> None:
        self._note = ProgressNote(stage=stage, done=before, total=total, unit=unit, before=before)
        self._advanced, self._detail = 0, ""
        self._started = self._logged = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=before, desc=stage, unit=f" {unit}", dynamic_ncols=True)
        self._write_note()

    def advance(self, n: int, unit: str = "samples") -> None:
        note, now = self._note, time.monotonic()
        self._advanced += n
        rate = self._advanced / max(now - self._started, 1e-9)
        note.rate, note.rate_unit = round(rate, 2), unit
        self._count(n if unit == note.unit else 0)
        if self._bar is not None:
            self._bar.set_postfix_str(self._detail or f"{rate:,.1f} {unit}/s")
        elif now - self._logged > self._every:
            self._logged = now
            log.info("%s: %d of %d %s, %.1f %s/s", note.stage, note.done, note.total, note.unit, rate, unit)

    def detail(self, text: str) -> None:
        """Show a text beside the bar in place of the rate."""
        self._detail = self._note.detail = text

    def shard(self, report: ShardReport, skipped: bool) -> None:
        self._count(1)

    def _count(self, n: int) -> None:
        self._note.done += n
        if self._bar is not None and n:
            self._bar.update(n)
        if time.monotonic() - self._written > 1.0:
            self._write_note()

    def _write_note(self) -> None:
        self._written = time.monotonic()
        if self._file is None:
            return
        self._note.seconds = round(self._written - self._started, 1)
        try:
            Path(self._file).parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._note.model_dump())
        except OSError as error:  # must not stop the work
            log.debug("%s: progress not written: %s", self._file, error)

    def end(self, report: StageReport) -> None:
        self._write_note()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
