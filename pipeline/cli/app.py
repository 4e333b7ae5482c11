"""The command group of ``python -m pipeline``: a command per stage, without heavy imports."""

from __future__ import annotations

import click

from pipeline.cli.data import datasets, ingest, make_demo_data
from pipeline.cli.evaluate import compare, evaluate, label_qa, promote
from pipeline.cli.export import export_labels, import_verdicts
from pipeline.cli.filter import calibrate, count_phrases, filter_boxes, merge_regions
from pipeline.cli.inspect import dedup, inspect
from pipeline.cli.label import build_shards, label_images, parse_phrases, pseudo_label, rescore
from pipeline.cli.predict import glip
from pipeline.cli.review import review
from pipeline.cli.run_job import run_job
from pipeline.cli.train import train_student, train_teacher
from pipeline.cli.verify import verify


class _Commands(click.Group):
    """Group in which ``export`` is an alias of ``export-labels``."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, "export-labels" if cmd_name == "export" else cmd_name)


@click.group(cls=_Commands)
def main() -> None:
    """GLIP's self-training, one command per stage (each is also installed under its own name)."""


for _command in (
    make_demo_data, datasets, ingest, parse_phrases, pseudo_label, label_images, rescore, merge_regions, filter_boxes,
    count_phrases, calibrate, verify, build_shards, train_teacher, train_student, evaluate, compare, promote, label_qa,
    inspect, dedup, review, export_labels, import_verdicts, run_job, glip,
):  # fmt: skip
    main.add_command(_command)
