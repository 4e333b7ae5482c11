"""Status of a run, read from its folder without a server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.execution.progress import ProgressNote
from pipeline.io.paths import is_hidden
from pipeline.runs.excluded_shards import stage_folder, stage_title
from pipeline.runs.layout import RunLayout

FRESH_SECONDS = 30.0
"""Age at which a progress note counts as stale: its process has ended, or hangs."""


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run. done: its finished outputs; notes: progress of its running processes."""

    name: str
    done: str
    notes: tuple[str, ...] = ()


def read_status(out: str | Path) -> list[StageStatus]:
    """The status of the stages that have started, in order.

    Raises:
        InputError: ``out`` is not the folder of a run.
    """
    layout = RunLayout(Path(out))
    if not layout.config.is_file():
        raise InputError(f"{out}: no run here (no config.yaml); want the folder that the run was started with as `out`")
    return [s for s in _stages(layout) if s.done or s.notes]


def _stages(layout: RunLayout) -> Iterator[StageStatus]:
    crawl = len(list((layout.data / "crawl").glob("*.tar"))) or None
    yield StageStatus("ingest", _shards(layout.train, None), _notes(layout, "ingest"))
    yield StageStatus("parse-phrases", _shards(layout.phrases, crawl), _notes(layout, "parse-phrases"))
    yield _trained(layout, "train-teacher", layout.teacher)
    round_ = 1
    while round_ == 1 or layout.regions(round_).is_dir():
        for stage in ("pseudo-label", "filter-boxes", "build-shards"):
            title = stage_title(stage, round_)
            yield StageStatus(title, _shards(stage_folder(layout, stage, round_), crawl), _notes(layout, title))
        for name, folder in (("student", layout.student(round_)), ("control", layout.control(round_))):
            yield _trained(layout, f"train-{name}-{round_}", folder)
        if layout.round(round_).is_file():
            yield StageStatus(f"round-{round_}", json.loads(layout.round(round_).read_text())["why"])
        round_ += 1
    evaluated = sorted(p.parent.name for p in (layout.root / "evaluation").glob("*/metrics.json"))
    yield StageStatus("evaluate", ", ".join(evaluated), _notes(layout, "evaluate"))
    yield StageStatus("report", str(layout.report / "index.html") if layout.summary.is_file() else "")


def _shards(folder: Path, total: int | None) -> str:
    reports = list(folder.glob("*.report.json")) if folder.is_dir() else []
    if not reports:
        return ""
    return f"{len(reports):,}" + (f" of {total:,}" if total else "") + " shards"


def _trained(layout: RunLayout, name: str, folder: Path) -> StageStatus:
    notes, report = _notes(layout, name), folder / "report.json"
    if report.is_file() and not notes:  # with notes, a new training runs, and the report is an earlier one's
        return StageStatus(name, f"{json.loads(report.read_text())['steps']:,} steps, done")
    saved = sorted(folder.glob("step-*[0-9]"))
    done = f"saved at step {int(saved[-1].name.removeprefix('step-')):,}" if saved else ""
    return StageStatus(name, done, notes)


def _notes(layout: RunLayout, prefix: str) -> tuple[str, ...]:
    notes = []
    for path in sorted(layout.logs.glob(f"{prefix}*.progress.json")):
        name = path.name.removesuffix(".progress.json")
        if name != prefix and not name.startswith(f"{prefix}-"):
            continue
        try:
            if time.time() - path.stat().st_mtime > FRESH_SECONDS:
                continue
            note = ProgressNote.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValueError):
            continue
        if note.done < note.total:
            notes.append(f"{name}: {note.words()}")
    return tuple(notes)


def runs_in(folder: Path, depth: int = 3) -> dict[str, Path]:
    """Path relative to ``folder`` -> folder of each run at most ``depth`` levels below it."""
    runs: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_hidden(path.name) or not path.is_dir():
            continue
        if RunLayout(path).config.is_file():
            runs[path.name] = path
        elif depth > 1:
            runs |= {f"{path.name}/{name}": run for name, run in runs_in(path, depth - 1).items()}
    return runs


def run_state(out: str | Path) -> str:
    """The state of a run in a line, with what it does now or did last."""
    stages = read_status(out)
    if notes := [note for stage in stages for note in stage.notes]:
        return f"running: {'; '.join(notes)}"
    if RunLayout(Path(out)).summary.is_file():
        return "finished"
    last = f", last {stages[-1].name}: {stages[-1].done}" if stages else ""
    return f"not finished, no running stage{last}"
