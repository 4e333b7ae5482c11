"""The stage flows: each turns a run's folder and settings into jobs. What a stage does is decided in pipeline/."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flows.artifacts import show_sweep
from flows.job_builder import JobBuilder, job_builder, repeated
from flows.jobs import run_job, run_jobs
from flows.stage_flow import stage_flow
from flows.subprocess_jobs import Job
from pipeline.config import SelfTrainConfig, TrainConfig
from pipeline.config.recipes import load_recipe
from pipeline.demo.manifest import MANIFEST
from pipeline.execution.reports import StageReport
from pipeline.io.paths import stem
from pipeline.runs.excluded_shards import (
    crawl_shards,
    files_of,
    note_excluded,
    shards_of_set,
    stage_title,
    surviving_shards,
)
from pipeline.runs.layout import RunLayout

OUT, DEMO = "runs/demo", load_recipe("demo")
"""What the run forms of the stages begin with."""
THRESHOLDS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"
"""What the dashboard's table of thresholds shows."""


def human_sources(config: SelfTrainConfig, layout: RunLayout) -> dict[str, list[str]]:
    """Source -> shards of the human-labelled sets of the mixture."""
    return {name: shards_of_set(layout, name) for name in config.data.sources}


def run_excluding_failed(s: JobBuilder, stage: str, round_number: int, jobs: Sequence[Job]) -> StageReport:
    """Run a stage's jobs; the shards that fail are set aside for the stages after it, too."""
    noted = partial(note_excluded, s.layout, stage, round_number)
    return run_jobs(stage_title(stage, round_number), jobs, s.config.resources.max_failed, noted=noted)


def made(s: JobBuilder, stage: str, round_number: int) -> list[str]:
    """The crawl's shards that have come through the stage."""
    return list(surviving_shards(s.config, s.layout, stage, round_number))


def seeded(config: TrainConfig, seed: int) -> TrainConfig:
    """The settings with another seed."""
    return config.model_copy(update={"seed": seed})


@stage_flow("make-demo-data")
def make_demo_data(out: str = OUT, config: SelfTrainConfig = DEMO) -> None:
    """Draw the demo's scenes, or leave them if they are there."""
    s = job_builder(out, config)
    command = [sys.executable, "-m", "pipeline.demo.cli", "--out", str(s.layout.data), "--quiet"]
    settings = {"seed": config.seed, **(config.demo or {})}
    command += repeated("--set", [f"{k}={json.dumps(v)}" for k, v in settings.items()])
    job = Job(name="make-demo-data", stage="make-demo-data", command=tuple(command), logs=s.layout.logs)
    run_jobs("make-demo-data", [job])


@stage_flow("ingest")
def ingest(out: str = OUT, config: SelfTrainConfig = DEMO) -> StageReport:
    """Human-labelled and evaluation sets into training shards."""
    s = job_builder(out, config)
    manifest, root = str(MANIFEST), str(s.layout.data)
    if config.demo is None:
        manifest = str(config.data.manifest)
        root = config.data.root or str(Path(manifest).parent)
    resources = config.resources
    job = s.job(
        "ingest", "ingest", manifest, "--root", root, "--out", str(s.layout.train),
        "--workers", str(resources.parallel), "--max-failed", str(resources.max_failed),
    )  # fmt: skip
    return run_excluding_failed(s, "ingest", 1, [job])


@stage_flow("parse-phrases")
def parse_phrases(out: str = OUT, config: SelfTrainConfig = DEMO) -> StageReport:
    """Noun phrases of the crawl's captions."""
    s = job_builder(out, config)
    shards = crawl_shards(config, s.layout)
    jobs = s.chunked("parse-phrases", "parse-phrases", "--shards", shards, "--out", str(s.layout.phrases), kept=True)
    return run_excluding_failed(s, "parse-phrases", 1, jobs)


@stage_flow("pseudo-label", run_name="pseudo-label-round-{round_number}")
def pseudo_label(out: str = OUT, config: SelfTrainConfig = DEMO, round_number: int = 1) -> StageReport:
    """The round's teacher boxes the phrases."""
    s = job_builder(out, config)
    jobs = s.chunked(
        f"pseudo-label-round-{round_number}", "pseudo-label", "--shards", made(s, "parse-phrases", round_number),
        "--phrases", str(s.layout.phrases), "--teacher", str(s.layout.teacher_of(round_number)),
        "--out", str(s.layout.regions(round_number)), kept=True, on_device=True,
    )  # fmt: skip
    return run_excluding_failed(s, "pseudo-label", round_number, jobs)


@stage_flow("filter-boxes", run_name="filter-boxes-round-{round_number}")
def filter_boxes(out: str = OUT, config: SelfTrainConfig = DEMO, round_number: int = 1) -> StageReport:
    """Rules choose labels among the regions."""
    s = job_builder(out, config)
    title = f"filter-boxes-round-{round_number}"
    regions = {stem(f): f for f in files_of(config, s.layout, "pseudo-label", round_number)}
    labels = str(s.layout.labels(round_number))
    jobs = s.chunked(title, "filter-boxes", "--regions", list(regions.values()), "--out", labels)
    report = run_excluding_failed(s, "filter-boxes", round_number, jobs)
    readable = [regions[stem(shard)] for shard in made(s, "filter-boxes", round_number)]
    sweep = run_job(s.job(f"{title}-sweep", "filter-boxes", *repeated("--regions", readable), "--sweep", THRESHOLDS))
    show_sweep(title, (sweep or {}).get("thresholds", []))
    return report


@stage_flow("build-shards", run_name="build-shards-round-{round_number}")
def build_shards(out: str = OUT, config: SelfTrainConfig = DEMO, round_number: int = 1) -> StageReport:
    """Labels and images into the round's training shards."""
    s = job_builder(out, config)
    jobs = s.chunked(
        f"build-shards-round-{round_number}", "build-shards", "--shards", made(s, "filter-boxes", round_number),
        "--phrases", str(s.layout.phrases), "--labels", str(s.layout.labels(round_number)),
        "--out", str(s.layout.pseudo(round_number)),
    )  # fmt: skip
    return run_excluding_failed(s, "build-shards", round_number, jobs)


@stage_flow("train-teacher")
def train_teacher(out: str = OUT, config: SelfTrainConfig = DEMO) -> None:
    """The first teacher, on human labels."""
    s = job_builder(out, config)
    job = s.training(
        "train-teacher", "train-teacher", seeded(config.teacher, config.seed),
        human_sources(config, s.layout), s.layout.teacher, init=None,
    )  # fmt: skip
    run_jobs("train-teacher", [job])


def control_settings(student: TrainConfig, teacher: TrainConfig) -> TrainConfig:
    """The student's settings on the teacher's mixture, and a beginning without pseudo-labels where the student has one of its own."""
    first = {name: share for name, share in student.first_mixture.items() if name != "pseudo"}
    return student.model_copy(
        update={
            "mixture": teacher.mixture,
            "mixture_unit": teacher.mixture_unit,
            "first_mixture": first,
            "first_steps": student.first_steps if first else 0,
        }
    )


@stage_flow("train-student", run_name="train-student-round-{round_number}")
def train_student(out: str = OUT, config: SelfTrainConfig = DEMO, round_number: int = 1) -> None:
    """The round's student on human and pseudo labels, and beside it the control: the teacher's own mixture."""
    s = job_builder(out, config)
    layout, human = s.layout, human_sources(config, s.layout)
    pseudo = {"pseudo": files_of(config, layout, "build-shards", round_number)}
    settings = seeded(config.student, config.seed + 1000 * round_number)
    before = layout.teacher if round_number == 1 else layout.control(round_number - 1)
    together = 1 + config.control
    jobs = [
        s.training(
            f"train-student-{round_number}", "train-student", settings, human | pseudo, layout.student(round_number),
            init=layout.teacher_of(round_number) if config.student_init == "teacher" else None, together=together,
        )
    ]  # fmt: skip
    if config.control:
        jobs.append(
            s.training(
                f"train-control-{round_number}", "train-control", control_settings(settings, config.teacher),
                human, layout.control(round_number), init=before / "final", together=together,
            )
        )  # fmt: skip
    run_jobs(f"train-student-round-{round_number}", jobs)


@stage_flow("evaluate")
def evaluate(out: str = OUT, config: SelfTrainConfig = DEMO, models: Sequence[str] = ("teacher",)) -> None:
    """The evaluation sets by the named models: "teacher", "student-1", "control-1"."""
    s = job_builder(out, config)
    sets: list[str] = []
    for name in config.data.evaluated():
        sets += [f"{name}={p}" for p in shards_of_set(s.layout, name)]
    frequencies = [f"{name}={file}" for name, file in config.data.frequencies.items()]
    jobs = [
        s.job(
            f"evaluate-{model}", "evaluate", "--model", str(s.layout.root / "checkpoints" / model / "final"),
            *repeated("--set-shards", sets), *repeated("--frequencies", frequencies), "--out", str(s.layout.evaluation(model)), together=len(models), on_device=True,
        )
        for model in models
    ]  # fmt: skip
    run_jobs(f"evaluate-{models[-1]}", jobs)


@stage_flow("label-photos")
def label_photos(out: str = OUT, config: SelfTrainConfig = DEMO) -> None:
    """The demo's real photographs through the four labelling stages, by the first teacher."""
    s = job_builder(out, config)
    photos, shards = s.layout.photos, ("--shards", str(s.layout.data / "photos"))
    phrases, regions, labels = (("--" + name, str(photos / name)) for name in ("phrases", "regions", "labels"))

    def run_stage(stage: str, folder: str, *arguments: str) -> None:
        name = f"photos-{stage}"
        job = s.job(name, stage, *arguments, "--out", str(photos / folder), counted_as="label-photos")
        run_jobs(name, [job])

    run_stage("parse-phrases", "phrases", *shards)
    run_stage("pseudo-label", "regions", *shards, *phrases, "--teacher", str(s.layout.teacher_of(1)))
    # a toy teacher is never sure of a photograph: its best guess a phrase shows the path
    run_stage("filter-boxes", "labels", *regions, "--set", "threshold=0.05", "--set", "best_per_phrase=1")
    run_stage("build-shards", "train", *shards, *phrases, *labels)
