"""Progress of long work: a bar on a terminal, a line now and then in a log, or whatever the caller hands in."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Protocol

from pipeline.stats import ShardReport, StageReport

log = logging.getLogger("glip_self_train")


class Progress(Protocol):
    """What a stage tells while it runs. ``advance`` may come from the middle of a shard."""

    def begin(self, stage: str, shards: int) -> None: ...

    def advance(self, n: int, unit: str = "samples") -> None: ...

    def shard(self, report: ShardReport, skipped: bool) -> None: ...

    def end(self, report: StageReport) -> None: ...


class Silent:
    """No progress at all."""

    def begin(self, stage: str, shards: int) -> None:
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

    def begin(self, stage: str, shards: int) -> None:
        self._stage, self._shards, self._seen, self._samples = stage, shards, 0, 0
        self._started = self._told = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=shards, desc=stage, unit="shard", dynamic_ncols=True)

    def advance(self, n: int, unit: str = "samples") -> None:
        self._samples += n
        rate = self._samples / max(time.monotonic() - self._started, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:,.1f} {unit}/s")
        elif time.monotonic() - self._told > self._every:
            self._told = time.monotonic()
            log.info("%s: %d of %d shards, %.1f %s/s", self._stage, self._seen, self._shards, rate, unit)

    def shard(self, report: ShardReport, skipped: bool) -> None:
        self._seen += 1
        if self._bar is not None:
            self._bar.update(1)

    def end(self, report: StageReport) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        for line in report.lines():
            log.info("%s", line)
