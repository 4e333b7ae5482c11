"""Progress of long work: a bar on a terminal, a line now and then in a log, or whatever the caller hands in."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Protocol

from pipeline.stats import ShardReport, StageReport

log = logging.getLogger("glip_self_train")


class Progress(Protocol):
    """What a stage tells while it runs: ``total`` shards (or steps, or images) to come, and what is done.

    ``advance`` may come from the middle of a shard; where its unit is the one that ``begin`` named, it counts towards
    the total. ``shard`` counts one shard towards it.
    """

    def begin(self, stage: str, total: int, unit: str = "shards") -> None: ...

    def advance(self, n: int, unit: str = "samples") -> None: ...

    def shard(self, report: ShardReport, skipped: bool) -> None: ...

    def end(self, report: StageReport) -> None: ...


class Silent:
    """No progress at all."""

    def begin(self, stage: str, total: int, unit: str = "shards") -> None:
        pass

    def advance(self, n: int, unit: str = "samples") -> None:
        pass

    def shard(self, report: ShardReport, skipped: bool) -> None:
        pass

    def end(self, report: StageReport) -> None:
        pass


class Terminal:
    """tqdm's bar of shards with the rate of samples on a terminal; a log line every ``every`` seconds elsewhere."""

    def __init__(self, every: float = 10.0) -> None:
        self._every = every
        self._bar: Any = None

    def begin(self, stage: str, total: int, unit: str = "shards") -> None:
        self._stage, self._total, self._unit, self._done, self._advanced = stage, total, unit, 0, 0
        self._started = self._told = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=stage, unit=f" {unit}", dynamic_ncols=True)

    def advance(self, n: int, unit: str = "samples") -> None:
        if unit == self._unit:
            self._count(n)
        self._advanced += n
        rate = self._advanced / max(time.monotonic() - self._started, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:,.1f} {unit}/s")
        elif time.monotonic() - self._told > self._every:
            self._told = time.monotonic()
            log.info("%s: %d of %d %s, %.1f %s/s", self._stage, self._done, self._total, self._unit, rate, unit)

    def shard(self, report: ShardReport, skipped: bool) -> None:
        self._count(1)

    def _count(self, n: int) -> None:
        self._done += n
        if self._bar is not None:
            self._bar.update(n)

    def end(self, report: StageReport) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
