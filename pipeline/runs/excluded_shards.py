"""Which shards of a run have come through its stages, and which were set aside.

A folder that is used again may hold what a shard gave before, under other settings or by another teacher. If the shard fails now,
that old result stays where it is (nothing is lost by settings that do not work), but the run's later stages leave it alone: the
stage that failed notes what lay there, and the note holds until the stage commits another result for the shard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import SelfTrainConfig
from pipeline.errors import InputError
from pipeline.execution.commit import committed, read_report
from pipeline.execution.reports import FailedShard, ShardReport
from pipeline.io.atomic import write_json
from pipeline.io.files import read_bytes, remove
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.runs.layout import RunLayout

STAGES = ("parse-phrases", "pseudo-label", "filter-boxes", "build-shards")
"""What a shard of the crawl goes through, in order."""


def crawl_shards(config: SelfTrainConfig, layout: RunLayout) -> list[str]:
    """The crawl's shards: the recipe's, or the demo's own."""
    return expand_shards(config.data.crawl or (str(layout.data / "crawl"),))


def stage_title(stage: str, round_: int) -> str:
    """A stage's name in a run: human labels and phrases are the same for every round."""
    return stage if stage in ("ingest", "parse-phrases") else f"{stage}-round-{round_}"


def stage_folder(layout: RunLayout, stage: str, round_: int) -> Path:
    """Where a stage leaves its outputs."""
    return {
        "ingest": layout.train,
        "parse-phrases": layout.phrases,
        "pseudo-label": layout.regions(round_),
        "filter-boxes": layout.labels(round_),
        "build-shards": layout.pseudo(round_),
    }[stage]


def note_excluded(layout: RunLayout, stage: str, round_: int, failed: Sequence[FailedShard]) -> None:
    """Write ``set-aside/STAGE.json``: each failed shard with its reason and the fingerprint of what it gave before, if anything.

    Without a failed shard there is no such file.
    """
    path, folder = layout.aside(stage_title(stage, round_)), stage_folder(layout, stage, round_)
    if not failed:
        remove(path)
        return
    write_json(path, {f.shard: {"error": f.error, "before": _fingerprint(folder, f.shard)} for f in failed})


def shards_of_set(layout: RunLayout, name: str) -> list[str]:
    """The shards that ingest has made of a human-labelled set, without those set aside.

    Raises:
        InputError: not one.
    """
    out = _excluded(layout, "ingest", 1)
    shards = [s for s in expand_shards(str(layout.train / f"{name}-{'[0-9]' * 6}.tar")) if stem(s) not in out]
    if not shards:
        raise InputError(f"{layout.train}: every shard of {name} was set aside; see {layout.aside('ingest')}")
    return shards


def surviving_shards(config: SelfTrainConfig, layout: RunLayout, stage: str, round_: int) -> dict[str, ShardReport]:
    """The crawl's shards that the stage has committed, each with its report; without those set aside there or in a stage before.

    Raises:
        InputError: not one.
    """
    out: set[str] = set()
    for earlier in STAGES[: STAGES.index(stage) + 1]:
        out |= _excluded(layout, earlier, round_)
    folder, shards = stage_folder(layout, stage, round_), crawl_shards(config, layout)
    found = {s: committed(folder, stem(s)) for s in shards if stem(s) not in out}
    there = {shard: report for shard, report in found.items() if report is not None}
    if not there:
        raise InputError(f"{folder}: {stage} has finished none of the crawl's {len(shards)} shards here; run it first")
    return there


def files_of(config: SelfTrainConfig, layout: RunLayout, stage: str, round_: int) -> list[str]:
    """The stage's files of the shards that have come through it.

    Raises:
        InputError: as :func:`surviving_shards`.
    """
    folder = stage_folder(layout, stage, round_)
    return [
        join(folder, n) for r in surviving_shards(config, layout, stage, round_).values() for n in sorted(r.outputs)
    ]


def _excluded(layout: RunLayout, stage: str, round_: int) -> set[str]:
    """Names of the shards whose notes hold."""
    data = read_bytes(layout.aside(stage_title(stage, round_)))
    notes: dict[str, dict[str, Any]] = {} if data is None else json.loads(data)
    folder = stage_folder(layout, stage, round_)
    return {name for name, note in notes.items() if _fingerprint(folder, name) == note["before"]}


def _fingerprint(folder: Path, shard: str) -> str | None:
    report = read_report(folder, shard)
    return None if report is None else report.fingerprint
