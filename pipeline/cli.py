"""One command a stage. Nothing heavy is imported before a command knows what it has to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.cli_base import (
    DEVICE,
    MAX_FAILED,
    OUT,
    SHARDS,
    SOURCES,
    THREADS,
    WORKERS,
    expand,
    stage_command,
    terminal,
)
from pipeline.cli_data import datasets, ingest
from pipeline.cli_evaluate import compare, evaluate, label_qa, promote
from pipeline.cli_export import export_labels
from pipeline.cli_filter import calibrate, count_phrases, filter_boxes
from pipeline.cli_label import build_shards, pseudo_label
from pipeline.cli_look import dedup, inspect
from pipeline.cli_rescore import rescore
from pipeline.errors import InputError
from pipeline.train_main import DATA_WORKERS, LOG_WITH

if TYPE_CHECKING:
    from pipeline.stats import StageReport
    from pipeline.training.report import TrainReport


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

    return stage.run(config, expand(shards), out, progress=terminal(), workers=workers, max_failed=max_failed)


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
    @DATA_WORKERS
    @LOG_WITH
    @click.option("--text-encoder", help="BERT folder of a new network. Default: the recipe's model.text_encoder.")
    @click.option("--backbone", help="ImageNet Swin file of a new network. Default: the recipe's model.backbone.")
    def train(
        config: Any,
        sources: tuple[str, ...],
        init: str | None,
        out: str,
        device: str,
        threads: int | None,
        data_workers: int,
        log_with: str | None,
        text_encoder: str | None,
        backbone: str | None,
    ) -> TrainReport:
        from pipeline.train_main import named_sources, start

        recipe = click.get_current_context().params["recipe"]
        model = None
        if init is None:
            from pipeline.recipes import load_recipe

            if recipe is None:
                raise InputError("want --init MODEL to start from, or --recipe NAME that says which network to build")
            paths = {"text_encoder": text_encoder, "backbone": backbone}
            model = load_recipe(recipe).model.model_copy(update={n: p for n, p in paths.items() if p})
        elif text_encoder or backbone:
            raise InputError("--text-encoder and --backbone are for a new network; --init has both already")
        report = start(
            config, named_sources(sources), out, model=model, init=init, device=device, threads=threads,
            data_workers=data_workers, log_with=log_with,
        )  # fmt: skip
        click.echo(f"{out}/{report.final}: {report.steps} steps on {sum(report.records.values()):,} records")
        for reason, n in report.lost.items():
            click.echo(f"  lost: {reason} {n:,}")
        return report

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


class _Commands(click.Group):
    """Knows a command by its other name, too."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, "export-labels" if cmd_name == "export" else cmd_name)


@click.group(cls=_Commands)
def main() -> None:
    """GLIP's self-training, a command a stage (each is also installed under its own name)."""


for _command in (
    datasets, ingest, parse_phrases, pseudo_label, rescore, filter_boxes, count_phrases, calibrate, build_shards,
    train_teacher, train_student, evaluate,
    compare, promote, label_qa, inspect, dedup, export_labels,
):  # fmt: skip
    main.add_command(_command)
