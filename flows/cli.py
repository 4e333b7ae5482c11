"""``self-train``: the whole loop from the command line."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.server_settings import SERVER_SETTINGS
from pipeline.cli.common import one_line_errors

if TYPE_CHECKING:
    from pipeline.config import SelfTrainConfig

DEFAULTS = SERVER_SETTINGS | {
    "PYTHONSAFEPATH": "1",  # what this starts imports our packages, whatever lies in the user's folder
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a busy laptop takes longer than the default 20
}
"""Environment variables, Prefect's most of them, that hold unless the environment says otherwise; set before it is imported."""

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
    from pipeline.config.recipes import load_recipe

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
    from flows.signals import interruptible

    with (
        one_line_errors("self-train"),
        interruptible(f"the same command goes on where it was; done so far is in {out}"),
    ):
        config = settings(recipe, changes)  # no logging of our own: Prefect's console names the stage in every line
        began = time.monotonic()
        from flows.self_train import self_train
        from flows.temporary_server import start_temporary_server
        from pipeline.runs.layout import RunLayout
        from pipeline.runs.summary import table_lines

        start_temporary_server()
        summary: Any = self_train(out, config)
        layout = RunLayout(Path(out))
        click.echo("")
        for line in table_lines(summary):
            click.echo(line)
        click.echo(f"\nnumbers: {layout.summary}\nreport:  {layout.report / 'index.html'}")
        click.echo(f"took {(time.monotonic() - began) / 60:.1f} minutes")


@main.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where the server listens; others can reach it if you name another.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65533),
    default=4200,
    show_default=True,
    help="The dashboard's; the runs' pages and TensorBoard take the next two.",
)
@click.option("--limit", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time.")
@click.option(
    "--runs",
    default="runs",
    show_default=True,
    help="Folder of runs whose pages and curves are shown.",
)
@click.option("--logs", default=".prefect/logs", show_default=True, help="Folder for what server and worker say.")
@click.option("--run", "start_run", is_flag=True, help="Also start a run of the demo, in RUNS/demo.")
def up(host: str, port: int, limit: int, runs: str, logs: str, start_run: bool) -> None:
    """Start Prefect's server and dashboard with a worker that runs what is asked, until interrupted.

    Deploys every flow under the name local. A server or worker that dies is started again; a server that answers already is used.

    \b
    Example: self-train up
    then, elsewhere: PREFECT_API_URL=http://127.0.0.1:4200/api prefect deployment run self-train/local -p rounds=2
    """
    import signal
    import threading

    from flows.local_server import LocalServer
    from flows.signals import SIGNALS, say
    from pipeline.cli.common import setup_logging

    setup_logging(verbose=False)
    ended = threading.Event()
    for sign in SIGNALS:
        if sign != signal.SIGHUP or signal.getsignal(sign) != signal.SIG_IGN:  # nohup: the terminal may go
            signal.signal(sign, lambda *_: ended.set())
    server = LocalServer(host, port, limit, Path(logs).absolute(), Path(runs).absolute())
    with one_line_errors("self-train"):
        try:
            click.echo(f"starting; logs in {logs}")
            server.start()
            click.echo(f"dashboard:   {server.url}")
            for name, address in server.extras().items():
                click.echo(f"{name + ':':12} {address}")
            url = f"PREFECT_API_URL={server.url}/api"
            demo = Path(runs).absolute() / "demo"  # a worker's folder is not this one
            click.echo(f"start a run: {url} prefect deployment run self-train/local -p out={demo}")
            click.echo("end:         Ctrl-C")
            if start_run:
                click.echo(f"started:     {server.run(out=str(demo))}")
            while not ended.wait(1):
                server.keep()
        finally:
            say("ending")
            server.stop()


@main.command()
@OUT
def status(out: str) -> None:
    """Print where a run stands, from its folder; needs no server."""
    from pipeline.runs.status import read_status

    with one_line_errors("self-train"):
        for stage in read_status(out):
            click.echo(f"{stage.name:24} {stage.done}")
            for note in stage.notes:
                click.echo(f"{'':24}   {note}")


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
    from pipeline.runs.layout import RunLayout
    from pipeline.runs.summary import table_lines

    with one_line_errors("self-train"):
        file = RunLayout(Path(out)).summary
        if not file.is_file():
            raise InputError(f"{file}: not there; the run in {out} has not finished")
        for line in table_lines(json.loads(file.read_text())):
            click.echo(line)


if __name__ == "__main__":
    main()
