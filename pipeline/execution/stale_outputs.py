"""Shards of an earlier run in the same folder that this run has nothing to do with: they would be read as its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.execution.commit import read_report
from pipeline.io.files import listing, remove
from pipeline.io.paths import join


def remove_stale(stage: str, out: str | Path, stale: Callable[[str], bool]) -> Iterator[str]:
    """Remove the outputs and the report of every shard that ``stale`` says yes to, by its name; the names, as they go.

    Only what a report of this stage stands beside is ours to remove.
    """
    for path in listing(out, ".report.json"):
        shard = path.rsplit("/", 1)[-1].removesuffix(".report.json")
        report = read_report(out, shard) if stale(shard) else None
        if report is not None and report.stage == stage:
            for file in report.outputs:
                remove(join(out, file))
            remove(path)
            yield shard
