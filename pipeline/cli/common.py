"""Shared parts of the commands: options from job fields, settings, one-line errors, logging."""

from __future__ import annotations

import functools
import logging
import os
import select
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import annotated_types
import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.cli.signals import interruptible
from pipeline.config import SelfTrainConfig
from pipeline.config.recipes import build, load_recipe
from pipeline.errors import InputError, RunError
from pipeline.execution.options import Cli, LabellingOptions, ShardOptions
from pipeline.execution.progress import Terminal
from pipeline.execution.reports import StageReport
from pipeline.execution.stage_failures import stage_failure
from pipeline.io.atomic import write_json
from pipeline.io.files import check_writable
from pipeline.io.paths import is_url, no_folder
from pipeline.stages.jobs import Job, PerShardJob, plain
from pipeline.system.parent_watch import LIFELINE, exit_with_parent

log = logging.getLogger("glip_self_train")

J = TypeVar("J", bound=Job)
FILE = click.Path(dir_okay=False)
"""Type of an option that names an output file."""
VERBOSE = click.Option(["-v", "--verbose"], is_flag=True, help="Log at DEBUG level.")


class _Command(click.Command):
    """Command whose repeatable options take several values: ``--shards a.tar b.tar``.

    So that globs may be given without quotes, which the shell expands. Not in commands that have
    arguments, where the further values would be theirs.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not any(isinstance(parameter, click.Argument) for parameter in self.params):
            args = list(self._one_value_each(args))
        return super().parse_args(ctx, args)

    def _one_value_each(self, args: Sequence[str]) -> Iterator[str]:
        """Arguments in which a repeatable option's name precedes each of its values."""
        options = {name: p for p in self.params if isinstance(p, click.Option) for name in p.opts}
        current, values = None, 0
        for arg in args:
            if arg.startswith("-") and len(arg) > 1:
                name, equals, _ = arg.partition("=")
                current, values = options.get(name), int(bool(equals))
            elif current is not None and current.multiple and values:
                yield current.opts[0]
                values += 1
            else:
                values += 1
            yield arg


def command(name: str, **settings: Any) -> Callable[[Callable[..., None]], click.Command]:
    """Decorate a function as a command with ``-v``, logging, one-line errors and exit codes.

    InputError becomes one line and exit code 2, RunError one line and exit code 1, Ctrl-C 130 and SIGTERM 143.
    """

    def wrap(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(verbose: bool, **arguments: Any) -> None:
            setup_logging(verbose)
            exit_with_parent()
            hint = "what is finished is kept, and the same command does the rest"
            ended_by_parent = os.environ.get(LIFELINE) == "stdin"  # which says how to resume
            with one_line_errors(name), nullcontext() if ended_by_parent else interruptible(name, hint):
                for option in click.get_current_context().command.params:
                    if option.type is FILE and arguments[option.name or ""]:
                        check_output(arguments[option.name or ""])
                function(**arguments)

        decorated = click.command(name, cls=_Command, context_settings={"show_default": True}, **settings)(run)
        decorated.params.append(VERBOSE)
        return decorated

    return wrap


def job_command(
    kind: type[Job],
    name: str = "",
    *,
    section: str = "",
    without: Sequence[str] = (),
    report: bool = True,
    **settings: Any,
) -> Callable[[Callable[..., Any]], click.Command]:
    """Decorate ``function(values, **others)`` as the command of a job, with an option per field.

    ``values`` are the job's fields by name, for :func:`make_job`; ``others`` are options that the
    function declares itself.

    Args:
        section: the recipe's section with the job's ``settings``. Default: the job's own.
        without: fields that have no option. report: offer ``--report-json`` for the function's
            result.
    """
    name, section = name or kind.stage, section or kind.section
    left_out = {"settings", *without}  # a recipe and --set give the settings
    fields = {n: f for n, f in kind.model_fields.items() if not (f.exclude or n in left_out)}
    inherited = LabellingOptions.model_fields | ShardOptions.model_fields

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            report_json = arguments.pop("report_json", None)
            values = {n: _value(n, field, arguments.pop(n)) for n, field in fields.items()}
            if section:
                values["settings"] = load_section(section, arguments.pop("recipe"), arguments.pop("changes"))
            values["progress"] = Terminal()
            if values.get("out") and not issubclass(kind, PerShardJob):  # whose finished outputs may be read-only
                check_output(values["out"])
            result = function(values, **arguments)
            show_report(result, report_json)
            if isinstance(result, StageReport):
                result.require_usable()

        decorated = command(name, **settings)(run)
        own = [_option(n, f) for n, f in fields.items() if n not in inherited]
        options = [_option(n, f) for n, f in fields.items() if n in inherited]
        if section:
            recipe = "A recipe's name or YAML file; its settings for this stage apply. Default: the built-in ones."
            change = f"Change a setting of {section}; may be repeated."
            options.append(click.Option(["--recipe"], help=recipe))
            options.append(click.Option(["--set", "changes"], multiple=True, metavar="NAME=VALUE", help=change))
        if report:
            options.append(click.Option(["--report-json"], type=FILE, help="Also write the report as JSON."))
        decorated.params = [*own, *decorated.params[:-1], *options, VERBOSE]
        return decorated

    return wrap


def check_output(path: str | Path) -> None:
    """Check, before any work, that an output file or folder can be written. Raises OSError that names it."""
    check_writable(Path(path).parent if not is_url(path) and Path(path).is_file() else path)


def load_section(section: str, recipe: str | None, changes: Sequence[str]) -> BaseModel:
    """Return a stage's settings: a recipe's section or the defaults, with ``--set`` changes."""
    kind = SelfTrainConfig.model_fields[section].annotation
    assert isinstance(kind, type) and issubclass(kind, BaseModel)
    data = getattr(load_recipe(recipe), section).model_dump() if recipe else {}
    return build(kind, data, changes, where=section)


def make_job(kind: type[J], values: Mapping[str, Any]) -> J:
    """Build a job; a wrong value is an InputError."""
    return build(kind, dict(values), where=kind.stage)


def _parts(field: FieldInfo) -> tuple[Any, Cli, dict[str, Any]]:
    """Return a field's type without None, its :class:`Cli`, and its bounds as click's arguments."""
    kind = field.annotation
    if get_origin(kind) in {Union, types.UnionType}:
        (kind,) = (k for k in get_args(kind) if k is not type(None))
    cli = next((m for m in field.metadata if isinstance(m, Cli)), Cli())
    bounds: dict[str, Any] = {}
    for m in field.metadata:
        if isinstance(m, annotated_types.Ge):
            bounds["min"] = m.ge
        if isinstance(m, annotated_types.Gt):
            bounds |= {"min": m.gt, "min_open": True}
        if isinstance(m, annotated_types.Le):
            bounds["max"] = m.le
    return kind, cli, bounds


def _option(name: str, field: FieldInfo) -> click.Parameter:
    """Return the click option or argument of a job's field."""
    kind, cli, bounds = _parts(field)
    required = field.is_required()
    origin = get_origin(kind)
    several = origin is dict or (origin is tuple and get_args(kind)[0] is str)
    if cli.name and not cli.name.startswith("-"):
        return click.Argument([name], nargs=-1 if several else 1, required=required, metavar=cli.metavar)
    settings: dict[str, Any] = {"required": required, "help": field.description, "metavar": cli.metavar}
    if several:
        settings["multiple"] = True
    elif origin is Literal:
        settings["type"] = click.Choice([str(value) for value in get_args(kind)])
    elif kind is bool:
        settings["is_flag"] = True
    elif kind is int:
        settings["type"] = click.IntRange(**bounds) if bounds else int
    elif kind is float:
        settings["type"] = click.FloatRange(**bounds) if bounds else float
    if not required and not several:
        default = field.get_default(call_default_factory=True)
        settings["default"] = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return click.Option([cli.name or f"--{name.replace('_', '-')}", name], **settings)


def _value(name: str, field: FieldInfo, given: Any) -> Any:
    """Convert an option's value to that of the job's field."""
    kind, cli, _ = _parts(field)
    option = cli.name or f"--{name.replace('_', '-')}"
    if get_origin(kind) is dict:
        return _named(given, option, cli.metavar or "NAME=VALUE", several=get_args(kind)[1] is not str)
    if get_origin(kind) is tuple and (number := get_args(kind)[0]) is not str:
        return numbers(given, number, option)
    return given


def _named(given: Sequence[str], option: str, metavar: str, *, several: bool) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` options into a dict. several: names may repeat; the values are lists.

    Raises:
        InputError: an option has no ``=`` or no value.
    """
    named: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            example = "grounding='train/grounding-*.tar'" if several else "lvis=lvis_v1_minival.json"
            raise InputError(f"{option} {text!r}: want {metavar}, such as {example}")
        if several:
            named.setdefault(name, []).append(value)
        else:
            named[name] = value
    return named


def numbers(text: str, kind: type, option: str) -> tuple[Any, ...]:
    """Parse comma-separated numbers.

    Raises:
        InputError: a part is not a number.
    """
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{option} {text!r}: want comma-separated numbers") from None


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn InputError, RunError and file errors into a line on stderr and exit code 2 or 1."""
    try:
        yield
    except Exception as error:
        if (line_and_code := one_line(error)) is None or (isinstance(error, BrokenPipeError) and _output_is_closed()):
            raise  # click ends without a word where nobody reads the output: `status | head`
        line, code = line_and_code
        log.debug("the error's trace:", exc_info=True)
        click.echo(f"{name}: error: {line}", err=True)
        sys.exit(code)


def _output_is_closed() -> bool:
    """Whether the standard output is a pipe without a reader."""
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def one_line(error: Exception) -> tuple[str, int] | None:
    """Return the line and the exit code of an error that needs no traceback, else None."""
    if isinstance(error, InputError | RunError):
        return str(error), error.exit_code
    if (found := stage_failure(error)) is not None:
        return str(found), found.exit_code
    if not isinstance(error, OSError):
        return None
    if error.filename is None:
        return f"{type(error).__name__}: {' '.join(str(error).split())}", RunError.exit_code
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    if isinstance(error, IsADirectoryError):
        return f"{name}: is a folder; want a file", InputError.exit_code
    if isinstance(error, FileExistsError | NotADirectoryError):
        return no_folder(name), InputError.exit_code
    if isinstance(error, FileNotFoundError):
        return f"{name}: no such file or folder", InputError.exit_code
    return f"{name}: {error.strerror or error}", RunError.exit_code


def setup_logging(verbose: bool) -> None:
    """Log this project's messages to stderr, those of libraries from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("glip_self_train").setLevel(logging.DEBUG if verbose else logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they flash by for local files


def show_report(report: Any, file: str | None) -> None:
    """Print a StageReport; write any report as JSON to ``file``."""
    if isinstance(report, StageReport):
        echo_lines(report.lines())
    if file and report is not None:
        write_json(file, plain(report))


def echo_lines(lines: Sequence[str]) -> None:
    """Print lines on stdout."""
    for line in lines:
        click.echo(line)
