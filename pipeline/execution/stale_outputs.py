"""Removal of an earlier run's shards that the present run does not replace: later stages would read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.execution.commit import read_report
from pipeline.io.files import listing, remove
from pipeline.io.paths import join


def remove_stale(stage: str, out: str | Path, stale: Callable[[str], bool]) -> Iterator[str]:
    """Remove the outputs and the report of every shard of this stage whose name is ``stale``; yields the names.

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
