"""The commands that train a teacher or a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import (
    DEVICE,
    OUT,
    SOURCES,
    THREADS,
    stage_command,
)
from pipeline.cli.train import DATA_WORKERS, LOG_WITH
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.training.report import TrainReport


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
        from pipeline.cli.train import named_sources, start

        recipe = click.get_current_context().params["recipe"]
        model = None
        if init is None:
            from pipeline.config.recipes import load_recipe

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
