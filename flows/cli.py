"""Command ``self-train``: run the whole loop, or a local server for it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.server_checks import bypass_proxies, check_server
from flows.server_settings import SERVER_SETTINGS
from pipeline.cli.common import one_line_errors
from pipeline.cli.review import review
from pipeline.cli.signals import interruptible, say
from pipeline.cli.view import view

if TYPE_CHECKING:
    from pipeline.config import SelfTrainConfig
    from pipeline.runs.layout import RunLayout

DEFAULTS = SERVER_SETTINGS | {
    "PYTHONSAFEPATH": "1",  # child processes import these packages, not files of the user's folder
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default, 20, is too short for a busy laptop
}
"""Defaults of environment variables, most of them Prefect's, set before Prefect is imported."""

OUT = click.option("--out", default="runs/demo", help="Folder of the run.")
RECIPE = click.option("--recipe", default="demo", help="A recipe's name or YAML file.")
SET = click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting; may be repeated.")
UNCHANGED = "nothing was changed"
WATCH_SECONDS = 2.0


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Self-training of GLIP: a teacher labels a crawl; a student learns from the labels, a control without them."""
    if not os.environ.get("PREFECT_HOME", "").strip():  # Prefect would take it for the working folder
        os.environ.pop("PREFECT_HOME", None)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(bypass_proxies(os.environ))


def _end_children_now() -> None:
    if "flows.subprocess_jobs" in sys.modules:
        sys.modules["flows.subprocess_jobs"].end_children_now()


def _prepared(recipe: str, changes: tuple[str, ...], out: str) -> tuple[SelfTrainConfig, RunLayout]:
    """The recipe and layout of a run, checked before Prefect's slow imports.

    Raises:
        InputError: what is wrong with recipe, paths or folder, a line for each.
    """
    from pipeline.config.recipes import load_recipe
    from pipeline.io.paths import local_folder
    from pipeline.runs.layout import RunLayout
    from pipeline.runs.preflight import recipe_problems, refuse

    config = load_recipe(recipe, changes)
    layout = RunLayout(local_folder(out, "a run"))
    refuse(recipe_problems(config, layout))
    return config, layout


def _show_settings(recipe: str, config: SelfTrainConfig, out: str) -> None:
    from pipeline.runs.plan import settings_lines

    click.echo("\n".join([f"recipe {recipe}, in {out}", *(f"  {line}" for line in settings_lines(config))]))


@main.command()
@RECIPE
@SET
@OUT
@click.option("--pilot", help="Report of `pseudo-label --limit 3 --report-json FILE`, for the time of labelling.")
def check(recipe: str, changes: tuple[str, ...], out: str, pilot: str | None) -> None:
    """Check all that a run needs, and print its plan; nothing is run or written.

    Paths, sets, model files, stores, device, disk and write permission, as `self-train run` checks them first.

    \b
    Example: self-train check --recipe own --set teacher.init=glip-t --set data.crawl=crawl --out runs/mine
    """
    with one_line_errors("self-train"), interruptible("self-train", UNCHANGED):
        config, layout = _prepared(recipe, changes, out)
        _show_settings(recipe, config, out)
        from pipeline.runs.plan import make_plan, plan_lines, read_pilot

        click.echo(
            "\n".join(["", *plan_lines(make_plan(config, layout, read_pilot(pilot) if pilot else None), layout)])
        )
        from flows.preflight import check_run

        check_run(config, layout)
        click.echo("nothing is missing")


@main.command()
@RECIPE
@SET
@OUT
def run(recipe: str, changes: tuple[str, ...], out: str) -> None:
    """Run the whole loop in this process; outputs that are in OUT already are kept.

    \b
    Example: self-train run --out runs/demo --set rounds=2
    """
    hint = f"the same command resumes it; its outputs so far are in {out}"
    with one_line_errors("self-train"), interruptible("self-train", hint, _end_children_now, patience=None):
        from pipeline.runs.summary import table_lines

        config, layout = _prepared(recipe, changes, out)
        began = time.monotonic()
        if check_server(temporary=True):
            from flows.temporary_server import start_temporary_server

            layout.logs.mkdir(parents=True, exist_ok=True)
            start_temporary_server(layout.logs / "server.log")
        from flows.self_train import self_train

        _show_settings(recipe, config, out)
        summary: Any = self_train(out, config)
        click.echo("\n".join(["", *table_lines(summary)]))
        click.echo(f"\nnumbers: {layout.summary}\nreport:  {layout.report / 'index.html'}")
        click.echo(f"took {(time.monotonic() - began) / 60:.1f} minutes")


@main.command()
@click.option("--host", default="127.0.0.1", help="Address to listen on; the default admits this machine only.")
@click.option("--port", type=click.IntRange(1, 65533), default=4200, help="Port of the dashboard; see above.")
@click.option("--limit", type=click.IntRange(1), default=1, help="Maximum number of concurrent runs.")
@click.option("--runs", default="runs", help="Folder of the runs whose pages and curves are shown.")
@click.option("--logs", default=".prefect/logs", help="Folder for the logs of server and worker.")
@click.option("--run", "start_run", is_flag=True, help="Also start a run of the demo, in RUNS/demo.")
def up(host: str, port: int, limit: int, runs: str, logs: str, start_run: bool) -> None:
    """Start Prefect's server, its dashboard and a worker, and keep them alive until interrupted.

    Deploys every flow under the name local. The runs' pages and TensorBoard use the two ports after the
    dashboard's. A server or worker that dies is started again; a server that already answers is used.

    \b
    Example: self-train up
    then, elsewhere: PREFECT_API_URL=http://127.0.0.1:4200/api prefect deployment run self-train/local -p rounds=2
    """
    from flows.local_server import LocalServer
    from pipeline.cli.common import setup_logging

    setup_logging(verbose=False)
    hint = "the same command starts it again, and runs that were under way can be started again too"
    with one_line_errors("self-train"), interruptible("self-train", hint, patience=None):
        server = LocalServer(host, port, limit, Path(logs).absolute(), Path(runs).absolute())
        try:
            click.echo(f"starting; logs in {logs}")
            server.start()
            click.echo(f"dashboard:   {server.url}")
            for name, address in server.extras().items():
                click.echo(f"{name + ':':12} {address}")
            url = f"PREFECT_API_URL={server.url}/api"
            demo = Path(runs).absolute() / "demo"  # absolute: a worker has another working directory
            click.echo(f"start a run: {url} prefect deployment run self-train/local -p out={demo}")
            click.echo("end:         Ctrl-C")
            if start_run:
                click.echo(f"started:     {server.run(out=str(demo))}")
            while True:
                time.sleep(1)
                server.keep()
        finally:
            server.stop()


@main.command()
@OUT
def status(out: str) -> None:
    """Print the state of a run, read from its folder; needs no server."""
    from pipeline.runs.status import read_status

    with one_line_errors("self-train"), interruptible("self-train", UNCHANGED):
        for stage in read_status(out):
            click.echo(f"{stage.name:24} {stage.done}")
            for note in stage.notes:
                click.echo(f"{'':24}   {note}")


@main.command()
@click.argument("section", nargs=-1)
@click.option("--markdown", is_flag=True, help="Print docs/settings.md.")
def settings(section: tuple[str, ...], markdown: bool) -> None:
    """Print the settings of a recipe with their values, defaults and meanings; default: of all sections.

    \b
    Example: self-train settings filter_boxes student
    """
    from pipeline.config.describe import markdown_lines, text_lines

    with one_line_errors("self-train"):
        for line in markdown_lines() if markdown else text_lines(section):
            click.echo(line)


@main.command()
@click.argument("runs", default="runs")
def ls(runs: str) -> None:
    """List the runs in the folder RUNS with their states and numbers; needs no server."""
    from pipeline.runs.status import list_runs

    with one_line_errors("self-train"), interruptible("self-train", UNCHANGED):
        for row in list_runs(runs):
            click.echo(f"{row.name:24} {row.state}")
            if row.numbers:
                click.echo(f"{'':24}   {row.numbers}")


@main.command()
@RECIPE
@SET
@OUT
@click.option("--deployment", default="self-train/local", help="FLOW/DEPLOYMENT to run.")
@click.option("--watch", is_flag=True, help="Show the run's progress until it ends; Ctrl-C ends the watching only.")
def submit(recipe: str, changes: tuple[str, ...], out: str, deployment: str, watch: bool) -> None:
    """Start a run on the server that PREFECT_API_URL names (`self-train up` prints it).

    The recipe is sent with its relative paths made absolute, as from here; where the server is on this machine,
    all is checked first.

    \b
    Example: self-train submit --recipe my.yaml --out runs/mine --watch
    """
    with one_line_errors("self-train"), interruptible("self-train", "the run itself continues"):
        from urllib.parse import urlsplit

        from flows.server_checks import LOOPBACK
        from pipeline.config.recipes import load_recipe
        from pipeline.runs.preflight import with_absolute_paths

        check_server(temporary=False)
        from prefect.settings import get_current_settings

        if urlsplit(str(get_current_settings().api.url)).hostname in LOOPBACK:
            config, _ = _prepared(recipe, changes, out)
        else:
            config = load_recipe(recipe, changes)
        from flows.submission import start, watch_run

        _show_settings(recipe, config, out)
        run_id, url = start(deployment, with_absolute_paths(config), Path(out).absolute())
        click.echo(f"started: {url}")
        if watch:
            sys.exit(0 if watch_run(run_id, WATCH_SECONDS) else 1)


@main.command()
@click.option("--limit", default=1, help="Maximum number of concurrent runs.")
def serve(limit: int) -> None:
    """Serve the flow as the deployment self-train/local until interrupted.

    Needs a server (`prefect server start`) that PREFECT_API_URL names. Then, elsewhere:

    \b
        prefect deployment run self-train/local
    """
    hint = "the same command serves it again"
    with one_line_errors("self-train"), interruptible("self-train", hint, _end_children_now, patience=None):
        check_server(temporary=False)
        from flows.self_train import self_train

        try:
            self_train.serve(name="local", limit=limit)
        except SystemExit:  # of Prefect's own handler of SIGTERM
            say(f"self-train: interrupted; {hint}")
            sys.exit(128 + signal.SIGTERM)


@main.command()
@OUT
def table(out: str) -> None:
    """Print the comparison of a finished run."""
    import json

    from pipeline.errors import InputError
    from pipeline.runs.layout import RunLayout
    from pipeline.runs.summary import table_lines

    with one_line_errors("self-train"), interruptible("self-train", UNCHANGED):
        file = RunLayout(Path(out)).summary
        if not file.is_file():
            raise InputError(f"{file}: no such file; the run in {out} has not finished")
        click.echo("\n".join(table_lines(json.loads(file.read_text()))))


main.add_command(view)
main.add_command(review)


if __name__ == "__main__":
    main()
