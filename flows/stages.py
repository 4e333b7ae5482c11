"""Stage flows: each turns a run's folder and settings into jobs of pipeline/stages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flows.artifacts import show_table
from flows.job_builder import JobBuilder, job_builder
from flows.jobs import run_job, run_jobs
from flows.stage_flow import stage_flow
from pipeline.config import SelfTrainConfig, TrainConfig
from pipeline.config.recipes import build, load_recipe
from pipeline.demo.config import DemoDataConfig
from pipeline.demo.manifest import MANIFEST
from pipeline.errors import InputError
from pipeline.execution.reports import StageReport
from pipeline.io.model_folder import is_released
from pipeline.io.paths import stem
from pipeline.runs.excluded_shards import (
    crawl_shards,
    files_of,
    note_excluded,
    shards_of_set,
    stage_title,
    surviving_shards,
)
from pipeline.stages.jobs import (
    BuildShards,
    ConvertCheckpoint,
    Evaluate,
    FilterBoxes,
    Ingest,
    Job,
    MakeDemoData,
    ParsePhrases,
    PerShardJob,
    PseudoLabel,
    SweepThresholds,
)

OUT, DEMO = "runs/demo", load_recipe("demo")
"""Defaults of the run forms."""


def run_shards(s: JobBuilder, job: PerShardJob, round_number: int = 1, *, persistent: bool = False) -> StageReport:
    """Run a stage in chunks of shards; later stages exclude the failed ones too. persistent: see JobBuilder.chunked."""
    title = stage_title(job.stage, round_number)
    jobs = s.chunked(title, job, persistent=persistent)
    noted = partial(note_excluded, s.layout, job.stage, round_number)
    return run_jobs(title, jobs, s.config.resources.max_failed, noted=noted)


def made(s: JobBuilder, stage: str, round_number: int) -> list[str]:
    """Shards of the crawl that the stage has committed, without excluded ones."""
    return list(surviving_shards(s.config, s.layout, stage, round_number))


@stage_flow("make-demo-data")
def make_demo_data(out: str = OUT, config: SelfTrainConfig = DEMO) -> None:
    """Draw the demo's scenes, unless they exist."""
    s = job_builder(out, config)
    settings = build(DemoDataConfig, {"seed": config.seed, **(config.demo or {})}, where="demo")
    run_jobs("make-demo-data", [s.child("make-demo-data", MakeDemoData(out=s.layout.data, settings=settings))])


@stage_flow("ingest")
def ingest(out: str = OUT, config: SelfTrainConfig = DEMO) -> StageReport:
    """Write human-labelled and evaluation sets as training shards."""
    s = job_builder(out, config)
    manifest, root = str(MANIFEST), str(s.layout.data)
    if config.demo is None:
        if config.data.manifest is None:
            raise InputError("data.manifest: found none; want the manifest of the sets to ingest")
        manifest = str(config.data.manifest)
        root = config.data.root or str(Path(manifest).parent)
    job = Ingest(
        manifest=manifest, root=root, out=s.layout.train, settings=config.ingest,
        workers=config.resources.parallel, max_failed=config.resources.max_failed,
    )  # fmt: skip
    return run_shards(s, job)


@stage_flow("parse-phrases")
def parse_phrases(out: str = OUT, config: SelfTrainConfig = DEMO) -> StageReport:
    """Extract noun phrases from the crawl's captions."""
    s = job_builder(out, config)
    data = config.data
    job = ParsePhrases(
        shards=crawl_shards(config, s.layout), out=s.layout.phrases, settings=config.parse_phrases,
        captions=data.captions, caption_key=data.caption_key, caption_column=data.caption_column,
    )  # fmt: skip
    return run_shards(s, job, persistent=True)


@stage_flow("pseudo-label")
def pseudo_label(out: str = OUT, config: SelfTrainConfig = DEMO, round_number: int = 1) -> StageReport:
    """Predict boxes for the phrases, or the recipe's class names, with the round's teacher."""
    s = job_builder(out, config)
    names = config.data.names
    job = PseudoLabel(
        shards=made(s, "parse-phrases", round_number) if names is None else crawl_shards(config, s.layout),
        phrases=s.layout.phrases if names is None else None, names=names, settings=config.pseudo_label,
        teacher=s.model(s.layout.teacher_name(round_number)), out=s.layout.regions(round_number),
    )  # fmt: skip
    return run_shards(s, job, round_number, persistent=True)


@stage_flow("filter-boxes")
def filter_boxes(out: str = OUT, config: SelfTrainConfig = DEMO, round_number: int = 1) -> StageReport:
    """Select labels among the predicted regions by rules."""
    s = job_builder(out, config)
    regions = {stem(f): f for f in files_of(config, s.layout, "pseudo-label", round_number)}
    job = FilterBoxes(regions=tuple(regions.values()), out=s.layout.labels(round_number), settings=config.filter_boxes)
    report = run_shards(s, job, round_number)
    readable = tuple(regions[stem(shard)] for shard in made(s, "filter-boxes", round_number))
    title = stage_title("filter-boxes", round_number)
    sweep = SweepThresholds(regions=readable, settings=config.filter_boxes)
    child = s.child(f"{title}-sweep", sweep, counted_as="filter-boxes")
    thresholds = None if report.done else child.read_report()  # without new labels an earlier one holds
    thresholds = thresholds or run_job(child)
    assert thresholds is not None
    words = f"{title}: labels that each threshold keeps, other rules unchanged"
    show_table(f"thresholds-{title}", thresholds["thresholds"], words)
    return report


@stage_flow("build-shards")
def build_shards(out: str = OUT, config: SelfTrainConfig = DEMO, round_number: int = 1) -> StageReport:
    """Write labels and images as the round's training shards."""
    s = job_builder(out, config)
    job = BuildShards(
        shards=made(s, "filter-boxes", round_number), labels=s.layout.labels(round_number),
        phrases=s.layout.phrases if config.data.names is None else None,
        out=s.layout.pseudo(round_number), settings=config.build_shards,
    )  # fmt: skip
    return run_shards(s, job, round_number)


@stage_flow("train-teacher")
def train_teacher(out: str = OUT, config: SelfTrainConfig = DEMO) -> None:
    """Train the first teacher on human labels, from a new network or a given model; or take that as it is."""
    s = job_builder(out, config)
    given = config.teacher
    if given.init is not None and is_released(given.init):
        job: Job = ConvertCheckpoint(checkpoint=given.init, out=s.layout.converted)
        run_jobs("convert-checkpoint", [s.child("convert-checkpoint", job, counted_as="train-teacher")])
    if given.steps == 0:
        return
    human = {name: shards_of_set(s.layout, name) for name in config.data.sources}
    settings, init = given.training(seed=config.seed), s.layout.initial(given)
    run_jobs(
        "train-teacher", [s.training("train-teacher", "train-teacher", settings, human, s.layout.teacher, init=init)]
    )


def control_settings(student: TrainConfig, teacher: TrainConfig) -> TrainConfig:
    """The student's settings with the teacher's mixture, and without pseudo-labels in the first and last steps.

    A teacher that is not trained may have no mixture: then it is the student's, without pseudo-labels.
    """
    human = {name: share for name, share in student.mixture.items() if name != "pseudo"}
    first, last = (
        {name: share for name, share in shares.items() if name != "pseudo"}
        for shares in (student.first_mixture, student.last_mixture)
    )
    return student.model_copy(
        update={
            "mixture": teacher.mixture or human,
            "mixture_unit": teacher.mixture_unit if teacher.mixture else student.mixture_unit,
            "first_mixture": first,
            "first_steps": student.first_steps if first else 0,
            "last_mixture": last,
            "last_steps": student.last_steps if last else 0,
        }
    )


@stage_flow("train-student")
def train_student(out: str = OUT, config: SelfTrainConfig = DEMO, round_number: int = 1) -> None:
    """Train the round's student on human and pseudo labels, and the control on the teacher's mixture."""
    s = job_builder(out, config)
    layout, human = s.layout, {name: shards_of_set(s.layout, name) for name in config.data.sources}
    learnt = {name: shards for name, shards in human.items() if name in config.student.mixture}
    pseudo = {"pseudo": files_of(config, layout, "build-shards", round_number)}
    settings = config.student.model_copy(update={"seed": config.seed + 1000 * round_number})
    teacher = s.model(layout.teacher_name(round_number))
    before = teacher if round_number == 1 else s.model(f"control-{round_number - 1}")
    together = 1 + config.trains_control
    jobs = [
        s.training(
            f"train-student-{round_number}", "train-student", settings, learnt | pseudo, layout.student(round_number),
            init=teacher if config.student_init == "teacher" else None, together=together,
        )
    ]  # fmt: skip
    if config.trains_control:
        jobs.append(
            s.training(
                f"train-control-{round_number}", "train-control", control_settings(settings, config.teacher),
                human, layout.control(round_number), init=before, together=together,
            )
        )  # fmt: skip
    run_jobs(f"train-student-round-{round_number}", jobs)


@stage_flow("evaluate")
def evaluate(out: str = OUT, config: SelfTrainConfig = DEMO, models: Sequence[str] = ("teacher",)) -> None:
    """Evaluate models, such as "teacher", "student-1", "control-1", on the evaluation sets."""
    s = job_builder(out, config)
    sets = {name: shards_of_set(s.layout, name) for name in config.data.evaluated()}
    jobs = []
    for model in models:
        job = Evaluate(
            model=s.model(model), sets=sets, frequencies=config.data.frequencies,
            out=s.layout.evaluation(model), settings=config.evaluate,
        )  # fmt: skip
        jobs.append(s.child(f"evaluate-{model}", job, together=len(models)))
    run_jobs(f"evaluate-{models[-1]}", jobs)


@stage_flow("label-photos")
def label_photos(out: str = OUT, config: SelfTrainConfig = DEMO) -> None:
    """Label the demo's real photographs by the first teacher, in the four labelling stages."""
    s = job_builder(out, config)
    photos, shards = s.layout.photos, s.layout.data / "photos"
    phrases, regions, labels = photos / "phrases", photos / "regions", photos / "labels"
    # the demo's teacher scores low on photographs: keep its best box per phrase
    rules = config.filter_boxes.model_copy(update={"threshold": 0.05, "best_per_phrase": 1})
    jobs: list[Job] = [
        ParsePhrases(shards=shards, out=phrases, settings=config.parse_phrases),
        PseudoLabel(
            shards=shards, phrases=phrases, teacher=s.model("teacher"), out=regions, settings=config.pseudo_label
        ),
        FilterBoxes(regions=regions, out=labels, settings=rules),
        BuildShards(shards=shards, phrases=phrases, labels=labels, out=photos / "train", settings=config.build_shards),
    ]
    for job in jobs:
        name = f"photos-{job.stage}"
        run_jobs(name, [s.child(name, job, counted_as="label-photos")])
