"""What all commands share: recipes and ``--set``, one-line errors with exit codes, logging, progress."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from pydantic import BaseModel

from pipeline.errors import InputError, RunError
from pipeline.execution.reports import StageReport
from pipeline.io.atomic import write_json
from pipeline.system.parent_watch import exit_with_parent

F = TypeVar("F", bound=Callable[..., Any])

DEVICE = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
SOURCES = click.option(
    "--source", "sources", multiple=True, required=True, metavar="NAME=SHARDS", help="A source of the mixture."
)
THREADS = click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: all cores.")

FILE = click.Path(dir_okay=False)
"""A file to be written."""

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


def stage_command(section: str, **settings: Any) -> Callable[[F], click.Command]:
    """A command whose settings are one section of a recipe.

    Adds ``--recipe``, ``--set``, ``--report-json`` and ``-v``; the function gets the section as ``config`` and returns
    a StageReport, another model or plain values, or None. InputError becomes one line and exit code 2, RunError one line and exit code 1.
    """

    def wrap(function: F) -> click.Command:
        @functools.wraps(function)
        def command(
            recipe: str | None,
            changes: tuple[str, ...],
            report_json: str | None,
            verbose: bool,
            **arguments: Any,
        ) -> None:
            setup_logging(verbose)
            exit_with_parent()
            with one_line_errors(settings.get("name", section)):
                report = function(config=load_section(section, recipe, changes), **arguments)
                if isinstance(report, StageReport):
                    tell(report)
                if report_json and report is not None:
                    write_json(report_json, report.model_dump(mode="json") if isinstance(report, BaseModel) else report)

        command = click.option("--report-json", type=FILE, help="Also write the counts as JSON.")(command)
        command = click.option("-v", "--verbose", is_flag=True, help="Tell more.")(command)
        command = click.option(
            "--set",
            "changes",
            multiple=True,
            metavar="NAME=VALUE",
            help=f"Change a setting of {section}; may be repeated.",
        )(command)
        command = click.option(
            "--recipe",
            help="A recipe's name or YAML file; its settings for this stage apply. Default: the built-in ones.",
        )(command)
        return click.command(context_settings={"show_default": True}, **settings)(command)

    return wrap


def load_section(section: str, recipe: str | None, changes: Sequence[str]) -> BaseModel:
    """The settings of one stage: a recipe's section, or the defaults, with ``--set`` changes applied."""
    from pipeline.config import SelfTrainConfig
    from pipeline.config.recipes import build, load_recipe

    kind = SelfTrainConfig.model_fields[section].annotation
    assert isinstance(kind, type) and issubclass(kind, BaseModel)
    data = getattr(load_recipe(recipe), section).model_dump() if recipe else {}
    return build(kind, data, changes, where=section)


class one_line_errors:
    """Turn InputError and RunError into a line on stderr and the exit code 2 or 1."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, InputError | RunError):
            click.echo(f"{self._name}: error: {error}", err=True)
            sys.exit(error.exit_code)
        if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError) and error.filename:
            wrong = (
                "is a folder; want a file"
                if isinstance(error, IsADirectoryError)
                else "is, or lies below, a file; want a folder"
            )
            click.echo(f"{self._name}: error: {error.filename}: {wrong}", err=True)
            sys.exit(InputError.exit_code)


def setup_logging(verbose: bool) -> None:
    """Our own messages to stderr; others' only when they warn."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("glip_self_train").setLevel(logging.DEBUG if verbose else logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars of files that load in a blink


def tell(report: StageReport) -> None:
    """The report on stdout, for people and scripts."""
    for line in report.lines():
        click.echo(line)


def terminal() -> Any:
    """Progress as a person at a terminal, or a log, sees it."""
    from pipeline.execution.progress import Terminal

    return Terminal()


def expand(patterns: tuple[str, ...], suffix: str = ".tar") -> list[str]:
    """See :func:`pipeline.io.shard_patterns.expand_shards`."""
    from pipeline.io.shard_patterns import expand_shards

    return expand_shards(patterns, suffix=suffix)
