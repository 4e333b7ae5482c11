"""Commands that train a teacher or a student."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import job_command, make_job
from pipeline.config import ModelConfig, TeacherConfig, TrainConfig
from pipeline.config.recipes import build, load_recipe
from pipeline.config.training import too_long_a_warmup
from pipeline.errors import InputError
from pipeline.stages.jobs import TrainModel


def _train_command(section: str, name: str, text: str) -> click.Command:
    @job_command(TrainModel, name, section=section, without=["model"], help=text)
    @click.option("--text-encoder", help="BERT folder of a new network. Default: the recipe's model.text_encoder.")
    @click.option("--backbone", help="ImageNet Swin file of a new network. Default: the recipe's model.backbone.")
    def train(values: dict[str, Any], text_encoder: str | None, backbone: str | None) -> Any:
        settings = values["settings"]
        if isinstance(settings, TeacherConfig):
            values["init"] = values["init"] or settings.init
        recipe = click.get_current_context().params["recipe"]
        if values["init"] is None:
            if recipe is None:
                raise InputError("want --init MODEL to start from, or --recipe NAME for the network to build")
            paths = {"text_encoder": text_encoder, "backbone": backbone}
            values["model"] = load_recipe(recipe).model.model_copy(update={n: p for n, p in paths.items() if p})
        elif text_encoder or backbone:
            raise InputError("--text-encoder and --backbone are for a new network; the model of --init has both")
        if settings.warmup_steps > settings.steps and not any(Path(values["out"]).glob("*")):  # unless it began so
            raise InputError(too_long_a_warmup(section, settings))
        report = make_job(TrainModel, values).run()
        click.echo(f"{values['out']}/{report.final}: {report.steps} steps on {sum(report.records.values()):,} records")
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


@job_command(TrainModel, "train", without=["model"], report=False)
@click.option("--config", required=True, help="JSON file of training settings (pipeline.config.TrainConfig).")
@click.option("--model", "model_file", help="JSON file of the network to build, when not starting from --init.")
def main(values: dict[str, Any], config: str, model_file: str | None) -> None:
    """Train with settings from files, as a process of `accelerate launch -m pipeline.cli.train`."""
    values["settings"] = build(TrainConfig, _read(config), where=config)
    values["model"] = build(ModelConfig, _read(model_file), where=model_file) if model_file else None
    if os.environ.get("RANK", "0") != "0":
        del values["progress"]
    make_job(TrainModel, values).run()


def _read(path: str) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: want a JSON file of settings ({error})") from None
    return data


if __name__ == "__main__":
    main()
