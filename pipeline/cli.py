"""One command a stage. Nothing heavy is imported before a command knows what it has to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.cli_base import DEVICE, SOURCES, THREADS, stage_command, tell
from pipeline.cli_filter import calibrate, count_phrases, filter_boxes
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.stats import StageReport

SHARDS = click.option(
    "--shards",
    required=True,
    multiple=True,
    help="Crawl shards: a folder, glob or 'crawl/{00000..00099}.tar'; paths or URLs.",
)
OUT = click.option("--out", required=True, help="Folder for the outputs. What is done there already is not done again.")
WORKERS = click.option("--workers", type=click.IntRange(1), default=1, help="Shards worked on at a time.")
MAX_FAILED = click.option(
    "--max-failed", type=click.IntRange(0), default=0, help="Shards that may fail before the run does."
)


def _progress() -> Any:
    from pipeline.progress import Terminal

    return Terminal()


def _expand(patterns: tuple[str, ...], suffix: str = ".tar") -> list[str]:
    from pipeline.io.paths import expand_shards

    return expand_shards(patterns, suffix=suffix)


@stage_command("ingest", name="ingest")
@click.argument("manifest")
@OUT
@click.option("--root", help="Folder that the manifest's paths are relative to. Default: the manifest's own.")
@click.option("--only", help="One set of the manifest, by name.")
@WORKERS
@MAX_FAILED
def ingest(
    config: Any, manifest: str, out: str, root: str | None, only: str | None, workers: int, max_failed: int
) -> StageReport:
    """Turn human-labelled sets, as their owners publish them, into training shards.

    \b
    Example: ingest data_manifests/demo.yaml --root runs/demo/data --out runs/demo/train
    """
    from pipeline.stages import ingest as stage

    return stage.run(
        config,
        manifest,
        out,
        root=root,
        only=only,
        progress=_progress(),
        workers=workers,
        max_failed=max_failed,
    )


@stage_command("parse_phrases", name="parse-phrases")
@SHARDS
@OUT
@WORKERS
@MAX_FAILED
def parse_phrases(config: Any, shards: tuple[str, ...], out: str, workers: int, max_failed: int) -> StageReport:
    """Find the noun phrases of a crawl's captions.

    \b
    Example: parse-phrases --shards 'crawl/{00000..00099}.tar' --out phrases --workers 8
    """
    from pipeline.stages import parse_phrases as stage

    return stage.run(config, _expand(shards), out, progress=_progress(), workers=workers, max_failed=max_failed)


@stage_command("pseudo_label", name="pseudo-label")
@SHARDS
@click.option(
    "--phrases", help="Folder that parse-phrases wrote. Default: OUT/../phrases, made there if it is missing."
)
@click.option(
    "--teacher",
    required=True,
    help="Model folder of the teacher (convert-checkpoint makes one of a release).",
)
@OUT
@DEVICE
@MAX_FAILED
def pseudo_label(
    config: Any,
    shards: tuple[str, ...],
    phrases: str | None,
    teacher: str,
    out: str,
    device: str,
    max_failed: int,
) -> StageReport:
    """Box the phrases of a crawl with a teacher; every region above a low floor is stored with its scores.

    \b
    Example: pseudo-label --shards 'crawl/{00000..00099}.tar' --phrases phrases --teacher glip-t --out regions
    """
    from pathlib import Path

    from pipeline.config import ParsePhrasesConfig
    from pipeline.io.hashing import model_revision
    from pipeline.stages import parse_phrases as parser
    from pipeline.stages import pseudo_label as stage

    paths = _expand(shards)
    model_revision(teacher)  # a wrong folder is told before any parsing
    if phrases is None:
        phrases = str(Path(out).parent / "phrases")
        tell(parser.run(ParsePhrasesConfig(), paths, phrases, progress=_progress(), max_failed=max_failed))
    return stage.run(
        config,
        paths,
        out,
        phrases=phrases,
        teacher=teacher,
        device=device,
        progress=_progress(),
        max_failed=max_failed,
    )


@stage_command("build_shards", name="build-shards")
@SHARDS
@click.option("--phrases", required=True, help="Folder that parse-phrases wrote.")
@click.option("--labels", required=True, help="Folder that filter-boxes wrote.")
@OUT
@click.option("--dataset", default="pseudo", help="Name of the new set.")
@WORKERS
@MAX_FAILED
def build_shards(
    config: Any,
    shards: tuple[str, ...],
    phrases: str,
    labels: str,
    out: str,
    dataset: str,
    workers: int,
    max_failed: int,
) -> StageReport:
    """Join labels and images into training shards.

    \b
    Example: build-shards --shards 'crawl/{00000..00099}.tar' --phrases phrases --labels labels --out train
    """
    from pipeline.stages import build_shards as stage

    return stage.run(
        config, _expand(shards), out,
        phrases=phrases, labels=labels, dataset=dataset, progress=_progress(), workers=workers, max_failed=max_failed,
    )  # fmt: skip


def _train_command(section: str, name: str, text: str) -> click.Command:
    @stage_command(section, name=name, help=text)
    @SOURCES
    @click.option(
        "--init",
        help="Model folder to start from. Default: a new network, as the recipe's model section says.",
    )
    @OUT
    @DEVICE
    @THREADS
    def train(
        config: Any, sources: tuple[str, ...], init: str | None, out: str, device: str, threads: int | None
    ) -> None:
        from pipeline.train_main import named_sources, start

        recipe = click.get_current_context().params["recipe"]
        model = None
        if init is None:
            from pipeline.recipes import load_recipe

            if recipe is None:
                raise InputError("want --init MODEL to start from, or --recipe NAME that says which network to build")
            model = load_recipe(recipe).model
        report = start(config, named_sources(sources), out, model=model, init=init, device=device, threads=threads)
        click.echo(f"{out}/{report.final}: {report.steps} steps on {sum(report.records.values()):,} records")
        for reason, n in report.lost.items():
            click.echo(f"  lost: {reason} {n:,}")

    return train


train_teacher = _train_command(
    "teacher",
    "train-teacher",
    """Train a teacher on human labels.

    \b
    Example: train-teacher --recipe demo --source detection='train/detection-*.tar' \\
        --source grounding='train/grounding-*.tar' --out checkpoints/teacher
    """,
)
train_student = _train_command(
    "student",
    "train-student",
    """Train a student on human labels and pseudo-labels together.

    \b
    Example: train-student --recipe demo --source detection='train/detection-*.tar' \\
        --source grounding='train/grounding-*.tar' --source pseudo='train/pseudo-*.tar' \\
        --init checkpoints/teacher/final --out checkpoints/student
    """,
)


@stage_command("evaluate", name="evaluate")
@click.option("--model", required=True, help="Model folder.")
@click.option(
    "--set-shards", "sets", multiple=True, required=True, metavar="NAME=SHARDS", help="A set with gold boxes."
)
@OUT
@DEVICE
def evaluate(config: Any, model: str, sets: tuple[str, ...], out: str, device: str) -> None:
    """Measure a model: recall@k and COCO AP on sets with gold boxes.

    \b
    Example: evaluate --model checkpoints/student/final --set-shards eval_novel='train/eval_novel-*.tar' --out evaluation
    """
    from pipeline.stages import evaluate as stage
    from pipeline.train_main import named_sources

    metrics = stage.run(config, model, named_sources(sets, "--set-shards"), out, device=device, progress=_progress())
    for name, values in metrics.items():
        click.echo(f"{name}: " + ", ".join(f"{k} {v:.1f}" for k, v in values.items()))


@click.group()
def main() -> None:
    """GLIP's self-training, a command a stage (each is also installed under its own name)."""


for _command in (
    ingest, parse_phrases, pseudo_label, filter_boxes, count_phrases, calibrate, build_shards, train_teacher, train_student,
    evaluate,
):  # fmt: skip
    main.add_command(_command)
