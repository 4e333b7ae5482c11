"""The plan of a run: its settings in short; its stages with their work, what is there, time and disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import SelfTrainConfig, TrainConfig
from pipeline.errors import InputError
from pipeline.execution.progress import ProgressNote, duration
from pipeline.execution.reports import StageReport
from pipeline.execution.throughput import Rates
from pipeline.io.files import file_size
from pipeline.io.model_folder import is_released, text_encoder_folder
from pipeline.io.paths import is_url
from pipeline.runs.excluded_shards import crawl_shards, stage_folder, stage_title
from pipeline.runs.layout import RunLayout
from pipeline.runs.preflight import free_bytes
from pipeline.runs.status import stage_states
from pipeline.training.report import read_report

SHARE_OF_CRAWL = {"parse-phrases": 0.01, "pseudo-label": 0.02, "filter-boxes": 0.02, "build-shards": 1.0}
"""Assumed bytes of a stage's outputs per byte of the crawl, before the run has any to measure."""
MOMENTS = 2
"""Numbers that AdamW keeps for each weight."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the plan. there: what is done; seconds: for the rest, None if not known; bytes: to be written."""

    name: str
    work: str
    there: str = ""
    seconds: float | None = None
    bytes: int = 0


def settings_lines(config: SelfTrainConfig) -> list[str]:
    """The settings that decide most, a line for each part of the run."""
    data, labels = config.data, config.filter_boxes
    teacher = _training(config.teacher) if config.teacher.steps else "as it is"
    teacher += f", from {config.teacher.init}" if config.teacher.init else ", a new network"
    best = f", at most {labels.best_per_phrase} a phrase" if labels.best_per_phrase else ""
    sets = ", ".join(data.evaluated()) or "none: nothing is evaluated"
    resources, pseudo = config.resources, config.pseudo_label
    start = "the teacher" if config.student_init == "teacher" else "scratch"
    control = "with a control" if config.trains_control else "without a control"
    at_a_time = f"{resources.device}, {resources.parallel} jobs at a time"
    return [
        f"teacher:  {teacher}",
        f"crawl:    {', '.join(data.labelled()) or 'drawn'}"
        + (f"; names {data.names}" if data.names else "")
        + (f"; captions {data.captions}" if data.captions else ""),
        f"labels:   floor {pseudo.floor:g}, precision {pseudo.precision}; threshold {labels.threshold:g}{best}",
        f"student:  {_training(config.student)}, from {start}; {control}",
        f"sets:     {sets}",
        f"machine:  {at_a_time}; seed {config.seed}, at most {config.rounds} rounds",
    ]


def _training(training: TrainConfig) -> str:
    mixture = ", ".join(f"{name} {share:g}" for name, share in training.mixture.items())
    return f"{training.steps:,} steps of {training.batch_size} ({mixture}), rate {training.learning_rate:g}"


def make_plan(config: SelfTrainConfig, layout: RunLayout, pilot: Rates | None = None) -> list[PlannedStage]:
    """The stages of a run in order. pilot: rates of a pilot's labelling; default: of this run's own, if it has begun.

    Only the first round is planned, as another one depends on its result.
    """
    there = {state.name: state.done for state in stage_states(layout, config)}
    return [_with_state(stage, there) for stage in _stages(config, layout, pilot)]


def _with_state(stage: PlannedStage, there: dict[str, str]) -> PlannedStage:
    return PlannedStage(stage.name, stage.work, there.get(stage.name, ""), stage.seconds, stage.bytes)


def _stages(config: SelfTrainConfig, layout: RunLayout, pilot: Rates | None) -> Iterator[PlannedStage]:
    data = config.data
    if config.demo is not None:
        yield PlannedStage("make-demo-data", "scenes")
    if used := data.used():
        yield PlannedStage("ingest", f"{len(used)} sets")
    try:
        shards = crawl_shards(config, layout)
    except InputError:
        shards = []  # the demo's are not drawn yet
    size = _crawl_bytes(shards)
    if data.names is None:
        yield _labelling(layout, "parse-phrases", shards, size, None)
    weights = _weight_bytes(config)
    if config.teacher.steps:
        yield _trained(layout, "train-teacher", layout.teacher, config.teacher, weights)
    else:
        yield PlannedStage("train-teacher", "no steps")
    sets = f" on {len(data.evaluated())} sets"
    for stage in ("pseudo-label", "filter-boxes", "build-shards"):
        link = stage == "build-shards" and config.build_shards.link
        yield _labelling(layout, stage, shards, 0 if link else size, pilot if stage == "pseudo-label" else None)
    yield _trained(layout, "train-student-1", layout.student(1), config.student, weights)
    if config.trains_control:
        yield _trained(layout, "train-control-1", layout.control(1), config.student, weights)
    if data.evaluated():
        yield PlannedStage("evaluate", f"{2 + config.trains_control} models{sets}")


def _labelling(layout: RunLayout, stage: str, shards: list[str], size: int, pilot: Rates | None) -> PlannedStage:
    """A stage of the crawl's shards: time by its own rates or the pilot's, by bytes."""
    title, folder = stage_title(stage, 1), stage_folder(layout, stage, 1)
    done = len(list(folder.glob("*.report.json"))) if folder.is_dir() else 0
    left = max(0.0, 1 - done / len(shards)) if shards else 1.0
    rates = _rates(layout, title) or pilot
    seconds = None
    if left == 0:
        seconds = 0.0
    elif rates is not None and rates.bytes_done and size:
        seconds = left * size * rates.device_seconds / max(rates.devices, 1) / rates.bytes_done
    made = sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) if done else 0
    new = left * (made / done * len(shards) if done else size * SHARE_OF_CRAWL[stage])
    return PlannedStage(title, f"{len(shards):,} shards" if shards else "shards", "", seconds, int(new))


def _rates(layout: RunLayout, title: str) -> Rates | None:
    """Rates of the run's own jobs of a stage that have ended; None without any."""
    total = StageReport(stage=title)
    for file in sorted(layout.logs.glob(f"{title}-[0-9]*.report.json")):
        try:
            total.merge(StageReport.model_validate_json(file.read_bytes()))
        except ValueError:
            continue  # of another version
    return total.rates


def read_pilot(file: str) -> Rates:
    """Rates of a report that ``pseudo-label --limit 3 --report-json FILE`` wrote.

    Raises:
        InputError: no such file, or it has no rates.
    """
    try:
        rates = StageReport.model_validate(json.loads(Path(file).read_bytes())).rates
    except (OSError, ValueError) as error:
        raise InputError(
            f"--pilot: {file}: {type(error).__name__}; want what pseudo-label --report-json wrote"
        ) from None
    if rates is None or not rates.bytes_done:
        raise InputError(f"--pilot: {file}: found no rates; want the report of a pseudo-label that labelled something")
    return rates


def _trained(layout: RunLayout, name: str, folder: Path, training: TrainConfig, weights: int) -> PlannedStage:
    """A training: time by its own rate, if it has begun; disk of its checkpoints and final model."""
    note = layout.logs / f"{name}.progress.json"
    seconds: float | None = None
    finished = read_report(folder)
    if finished is not None and finished.steps == training.steps:
        seconds = 0.0
    elif note.is_file():
        try:
            seconds = ProgressNote.model_validate_json(note.read_bytes()).seconds_left
        except ValueError:
            seconds = None
    copies = (1 + MOMENTS + (training.ema is not None)) * (training.keep_checkpoints + 1) + 1
    there = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    wanted = 0 if seconds == 0 else max(0, weights * copies - there)
    return PlannedStage(name, f"{training.steps:,} steps", "", seconds, wanted)


def _crawl_bytes(shards: list[str]) -> int:
    """Size of the crawl; of remote shards that of the first, times their number."""
    local = sum(file_size(shard) or 0 for shard in shards if not is_url(shard))
    remote = [shard for shard in shards if is_url(shard)]
    return local + (len(remote) * (file_size(remote[0]) or 0) if remote else 0)


def _weight_bytes(config: SelfTrainConfig) -> int:
    """Size of the weights of the model that is trained; of a new network at least that of its pre-trained parts."""
    init, model = config.teacher.init, config.model
    if init is not None:
        return (file_size(init) or 0) if is_released(init) else _weights_in(Path(init))
    try:
        encoder = _weights_in(text_encoder_folder(model.text_encoder))
    except InputError:
        encoder = 0
    return encoder + (file_size(model.backbone) or 0 if model.backbone else 0)


def _weights_in(folder: Path) -> int:
    return sum(file_size(p) or 0 for suffix in ("safetensors", "bin") for p in folder.glob(f"*.{suffix}"))


def check_space(plan: list[PlannedStage], layout: RunLayout) -> None:
    """Raise InputError if the run's folder has less space than the plan's new outputs need."""
    need, free = sum(stage.bytes for stage in plan), free_bytes(layout.root)
    if need > free:
        raise InputError(
            f"out: {layout.root}: found {_size(free)} free, and the run needs about {_size(need)}; want another "
            "folder, fewer checkpoints (keep_checkpoints), or labels without images (build_shards.link=true)"
        )


def plan_lines(plan: list[PlannedStage], layout: RunLayout) -> list[str]:
    """The plan as a text table, with totals."""
    rows = [("stage", "work", "there", "time left", "disk")]
    for s in plan:
        left = "" if s.seconds is None else "done" if s.seconds == 0 else duration(s.seconds)
        rows.append((s.name, s.work, s.there, left, _size(s.bytes) if s.bytes else ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    known = [s.seconds for s in plan if s.seconds]
    unknown = [
        s.name for s in plan if s.seconds is None and s.work.split()[-1] in {"shards", "steps"} and s.work != "no steps"
    ]
    need, free = sum(s.bytes for s in plan), free_bytes(layout.root)
    lines.append(f"disk: about {_size(need)} more, {_size(free)} free at {layout.root}")
    if any(s.there for s in plan):
        lines.append("what is there is kept, unless settings or inputs have changed since: that is made again")
    if known:
        lines.append(
            f"time: about {duration(sum(known))} more" + (f", besides {', '.join(unknown)}" if unknown else "")
        )
    if "pseudo-label-round-1" in unknown:
        lines.append(
            "time of labelling: no rate is known yet; a pilot measures it: pseudo-label --limit 3 "
            "--report-json pilot.json, then self-train check --pilot pilot.json"
        )
    return lines


def _size(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
