"""Removal of an earlier run's shards, which later stages would read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.execution.commit import read_report
from pipeline.io.files import listing, remove
from pipeline.io.paths import join


def remove_stale(stage: str, out: str | Path, stale: Callable[[str], bool]) -> Iterator[str]:
    """Remove outputs and report of every shard of a stage whose name is ``stale``; yields the
    names.

    Files that no report of the stage lists stay.
    """
    for path in listing(out, ".report.json"):
        shard = path.rsplit("/", 1)[-1].removesuffix(".report.json")
        report = read_report(out, shard) if stale(shard) else None
        if report is not None and report.stage == stage:
            for file in report.outputs:
                remove(join(out, file))
            remove(path)
            yield shard
