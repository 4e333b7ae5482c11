"""Status of a run, read from its folder without a server."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config import SelfTrainConfig
from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError
from pipeline.execution.claims import holder_alive
from pipeline.execution.progress import ProgressNote
from pipeline.io.atomic import write_json
from pipeline.io.paths import is_hidden, is_url
from pipeline.io.shard_patterns import expand_crawl
from pipeline.io.strict_model import StrictModel
from pipeline.runs.excluded_shards import stage_folder, stage_title
from pipeline.runs.layout import RunLayout
from pipeline.runs.summary import columns

log = logging.getLogger("glip_self_train")
STATE = "run.json"
"""File of the :class:`RunState` in the logs of a run."""
FRESH_SECONDS = 30.0
"""Age at which a progress note counts as stale: its process has ended, or hangs."""


class RunState(StrictModel):
    """State of a run, in its folder. began, ended: seconds since 1970; stage: the last that began."""

    flow: str
    state: Literal["running", "completed", "failed", "cancelled"] = "running"
    reason: str = ""
    stage: str = ""
    began: float
    ended: float | None = None

    @classmethod
    def begin(cls, layout: RunLayout, flow: str) -> None:
        """Write that a run has begun."""
        layout.logs.mkdir(parents=True, exist_ok=True)
        cls(flow=flow, began=time.time())._write(layout)

    @classmethod
    def change(cls, layout: RunLayout, **fields: Any) -> None:
        """Write new values of fields; an error, such as a full disk, is logged and never fails the run."""
        try:
            state = cls.read(layout) or cls(flow="", began=time.time())
            state.model_copy(update=fields)._write(layout)
        except OSError as error:
            log.warning("%s: state not written: %s", layout.logs, error)

    @classmethod
    def read(cls, layout: RunLayout) -> RunState | None:
        """The state in a run's folder; None if an earlier version ran there."""
        try:
            return cls.model_validate_json((layout.logs / STATE).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def _write(self, layout: RunLayout) -> None:
        write_json(layout.logs / STATE, self.model_dump(mode="json"))

    def words(self, layout: RunLayout) -> str:
        """State and reason as text; of a run whose process is gone without recording its end, that."""
        at = f" in {self.stage}" if self.stage and self.state != "completed" else ""
        if self.state != "running":
            return f"{self.state}{at}" + (f": {self.reason.splitlines()[0]}" if self.reason else "")
        if holder_alive(layout.root, "run") is False:
            return f"ended{at} without recording why: its process was killed, or the machine went down"
        return f"running{at}"


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
    state = RunState.read(layout)
    first = [StageStatus("run", state.words(layout))] if state else []
    try:
        config = load_recipe(str(layout.config))
    except InputError:
        config = None  # of a version with other settings
    stages = [s for s in stage_states(layout, config) if s.done or s.notes]
    if state is not None and state.state != "running":  # a note is not older than its process for a while
        stages = [replace(s, notes=()) for s in stages]
    return first + [s for s in stages if s.done or s.notes]


@dataclass(frozen=True)
class RunRow:
    """A run in a list. numbers: what it has measured, in short."""

    name: str
    state: str
    numbers: str = ""


def list_runs(folder: str | Path) -> list[RunRow]:
    """The runs in a folder and in its folders, by name.

    Raises:
        InputError: no such folder, or it has no runs.
    """
    runs = runs_in(Path(folder))
    if not runs:
        raise InputError(f"{folder}: found no runs (folders with a config.yaml); want the folder that holds them")
    return [_row(name, run) for name, run in runs.items()]


def _row(name: str, run: Path) -> RunRow:
    try:
        return RunRow(name, run_state(run), _numbers(RunLayout(run)))
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # must not hide the others
        return RunRow(name, f"cannot be read: {type(error).__name__}: {error}")


def runs_in(folder: Path, depth: int = 3) -> dict[str, Path]:
    """Path relative to ``folder`` -> folder of each run at most ``depth`` levels below it."""
    runs: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_hidden(path.name) or not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
            continue
        if RunLayout(path).config.is_file():
            runs[path.name] = path
        elif depth > 1:
            runs |= {f"{path.name}/{name}": run for name, run in runs_in(path, depth - 1).items()}
    return runs


def run_state(out: str | Path) -> str:
    """The state of a run in a line, with what it does now, and why and when it ended."""
    layout = RunLayout(Path(out))
    state = RunState.read(layout)
    if state is None:  # of an earlier version
        return "completed" if layout.summary.is_file() else "not finished"
    words = state.words(layout)
    if state.ended is not None:
        return f"{words} ({time.strftime('%Y-%m-%d %H:%M', time.localtime(state.ended))})"
    notes = [note for stage in read_status(out) for note in stage.notes]
    return "; ".join([words, *notes])


def _numbers(layout: RunLayout) -> str:
    if not layout.summary.is_file():
        return ""
    summary = json.loads(layout.summary.read_text())
    best = str(summary["best"])
    role, _, number = best.partition("-")
    rounds = summary.get("by_round") or []
    metrics = (rounds[int(number) - 1] if 0 < int(number or 0) <= len(rounds) else summary).get(role, {})
    numbers = [f"{head} {metrics[key]:.1f}" for key, head in columns(summary).items() if metrics.get(key) is not None]
    return f"{best}: {', '.join(numbers) or 'not evaluated'}"


def stage_states(layout: RunLayout, config: SelfTrainConfig | None) -> Iterator[StageStatus]:
    """All stages of a run in order, also those that have not begun."""
    crawl = _crawl_size(layout, config)
    yield StageStatus("ingest", _shards(layout.train, None), _notes(layout, "ingest"))
    if config is None or config.data.names is None:
        yield StageStatus("parse-phrases", _shards(layout.phrases, crawl), _notes(layout, "parse-phrases"))
    teacher = config.teacher if config is not None else None
    if teacher is not None and teacher.steps == 0:
        yield StageStatus("train-teacher", f"as given: {teacher.init}")
    else:
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


def _crawl_size(layout: RunLayout, config: SelfTrainConfig | None) -> int | None:
    """Number of the crawl's shards; None if it is not known without asking a store."""
    patterns = config.data.labelled() if config is not None else ()
    if any(map(is_url, patterns)):
        return None
    try:
        return len(expand_crawl(patterns or (str(layout.data / "crawl"),)))
    except InputError:
        return None


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
