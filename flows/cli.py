"""``self-train``: the whole loop from the command line."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli_base import one_line_errors

if TYPE_CHECKING:
    from pipeline.config import SelfTrainConfig

DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a busy laptop takes longer than the default 20
}
"""Settings of Prefect that hold unless the environment says otherwise; set before it is imported."""

RECIPE = click.option("--recipe", default="demo", show_default=True, help="A recipe's name or YAML file.")
SET = click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting; may be repeated.")
OUT = click.option("--out", default="runs/demo", show_default=True, help="Folder of the run.")


@click.group()
def main() -> None:
    """GLIP's self-training: a teacher labels a crawl, a student learns from it, a control keeps it honest."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def settings(recipe: str, changes: tuple[str, ...]) -> SelfTrainConfig:
    """The recipe with its changes, checked before anything is started."""
    from pipeline.recipes import load_recipe

    return load_recipe(recipe, changes)


@main.command()
@RECIPE
@SET
@OUT
def run(recipe: str, changes: tuple[str, ...], out: str) -> None:
    """Run the whole loop here and now; what is done already in OUT is not done again.

    \b
    Example: self-train run --out runs/demo --set rounds=2
    """
    with one_line_errors("self-train"):  # no logging of our own: Prefect's console names the stage in every line
        config = settings(recipe, changes)
        began = time.monotonic()
        from flows.self_train import self_train
        from pipeline.run_layout import RunLayout
        from pipeline.summary import table_lines

        summary = self_train(out, config)
        layout = RunLayout(Path(out))
        click.echo("")
        for line in table_lines(summary):
            click.echo(line)
        click.echo(f"\nnumbers: {layout.summary}\nreport:  {layout.report / 'index.html'}")
        click.echo(f"took {(time.monotonic() - began) / 60:.1f} minutes")


@main.command()
@click.option("--limit", default=1, show_default=True, help="Runs at a time.")
def serve(limit: int) -> None:
    """Offer the flow as the deployment self-train/local and run what is asked of it, until interrupted.

    Needs a server (`prefect server start`) that PREFECT_API_URL names. Then, elsewhere:

    \b
        prefect deployment run self-train/local
    """
    from flows.self_train import self_train

    self_train.serve(name="local", limit=limit)


@main.command()
@OUT
def table(out: str) -> None:
    """Print the comparison of a finished run."""
    import json

    from pipeline.errors import InputError
    from pipeline.run_layout import RunLayout
    from pipeline.summary import table_lines

    with one_line_errors("self-train"):
        file = RunLayout(Path(out)).summary
        if not file.is_file():
            raise InputError(f"{file}: not there; the run in {out} has not finished")
        for line in table_lines(json.loads(file.read_text())):
            click.echo(line)
