"""Committed shards of a run, and failed shards that are excluded from later stages.

A reused folder may hold a shard's earlier result, of other settings or another teacher. If the
shard fails now, that result is kept, but later stages must not read it: the failed stage records
its fingerprint, and the shard is excluded until the stage commits another result for it.
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
from pipeline.io.shard_patterns import expand_crawl, expand_shards
from pipeline.runs.layout import RunLayout

STAGES = ("parse-phrases", "pseudo-label", "filter-boxes", "build-shards")
"""Stages that process a shard of the crawl, in order."""


def labelling_stages(config: SelfTrainConfig) -> tuple[str, ...]:
    """Those of ``STAGES`` that a run has: with class names, no captions are parsed."""
    return STAGES if config.data.names is None else STAGES[1:]


def crawl_shards(config: SelfTrainConfig, layout: RunLayout) -> list[str]:
    """The shards to label: those of the recipe, or of the demo."""
    return expand_crawl(config.data.labelled() or (str(layout.data / "crawl"),))


def stage_title(stage: str, round_: int) -> str:
    """A stage's name in a run, with the round unless its output is the same in every round."""
    return stage if stage in ("ingest", "parse-phrases") else f"{stage}-round-{round_}"


def stage_folder(layout: RunLayout, stage: str, round_: int) -> Path:
    """The folder of a stage's outputs."""
    return {
        "ingest": layout.train,
        "parse-phrases": layout.phrases,
        "pseudo-label": layout.regions(round_),
        "filter-boxes": layout.labels(round_),
        "build-shards": layout.pseudo(round_),
    }[stage]


def note_excluded(layout: RunLayout, stage: str, round_: int, failed: Sequence[FailedShard]) -> None:
    """Write ``set-aside/STAGE.json``: error and earlier result's fingerprint, by shard.

    Without a failed shard the file is removed.
    """
    path, folder = layout.excluded(stage_title(stage, round_)), stage_folder(layout, stage, round_)
    if not failed:
        remove(path)
        return
    write_json(path, {f.shard: {"error": f.error, "before": _fingerprint(folder, f.shard)} for f in failed})


def shards_of_set(layout: RunLayout, name: str) -> list[str]:
    """The shards of a human-labelled set that ingest has written, without excluded ones.

    Raises:
        InputError: there is none.
    """
    excluded = _excluded(layout, "ingest", 1)
    shards = [s for s in expand_shards(str(layout.train / f"{name}-{'[0-9]' * 6}.tar")) if stem(s) not in excluded]
    if not shards:
        raise InputError(f"{layout.train}: every shard of {name} is excluded; see {layout.excluded('ingest')}")
    return shards


def surviving_shards(config: SelfTrainConfig, layout: RunLayout, stage: str, round_: int) -> dict[str, ShardReport]:
    """The crawl's shards that the stage has committed, with their reports.

    Without those excluded by this stage or an earlier one.

    Raises:
        InputError: there is none.
    """
    excluded: set[str] = set()
    stages = labelling_stages(config)
    for earlier in stages[: stages.index(stage) + 1]:
        excluded |= _excluded(layout, earlier, round_)
    folder, shards = stage_folder(layout, stage, round_), crawl_shards(config, layout)
    reports = {s: r for s in shards if stem(s) not in excluded and (r := committed(folder, stem(s))) is not None}
    if not reports:
        raise InputError(f"{folder}: {stage} has finished none of the crawl's {len(shards)} shards here; run it first")
    return reports


def files_of(config: SelfTrainConfig, layout: RunLayout, stage: str, round_: int) -> list[str]:
    """The stage's files of :func:`surviving_shards`, which raises an InputError without any."""
    folder, reports = stage_folder(layout, stage, round_), surviving_shards(config, layout, stage, round_)
    return [join(folder, name) for report in reports.values() for name in sorted(report.outputs)]


def _excluded(layout: RunLayout, stage: str, round_: int) -> set[str]:
    """Names of failed shards for which the stage has committed no other result since."""
    data = read_bytes(layout.excluded(stage_title(stage, round_)))
    notes: dict[str, dict[str, Any]] = {} if data is None else json.loads(data)
    folder = stage_folder(layout, stage, round_)
    return {name for name, note in notes.items() if _fingerprint(folder, name) == note["before"]}


def _fingerprint(folder: Path, shard: str) -> str | None:
    report = read_report(folder, shard)
    return None if report is None else report.fingerprint
