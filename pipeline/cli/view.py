"""Command that serves pages of stores and runs on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import command
from pipeline.cli.inspect import expand_stores, store_options
from pipeline.errors import InputError
from pipeline.execution.progress import Terminal
from pipeline.io.shard_patterns import expand_crawl, expand_shards, shards_in

if TYPE_CHECKING:
    from pipeline.report.view import Site


@command("view")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@store_options
@click.option(
    "--set-shards", "moved", multiple=True, metavar="NAME=SHARDS", help="For an evaluation: where a set's shards are."
)
@click.option("--host", default="127.0.0.1", help="Address to listen on; the default admits this machine only.")
@click.option("--port", type=click.IntRange(0, 65535), default=4210, help="Port; 0: any free one.")
@click.option("--runs", "only_runs", is_flag=True, help="FOLDER is a folder of runs, also if it has none yet.")
def view(
    folders: tuple[str, ...],
    phrases: str | None,
    crawl: tuple[str, ...],
    regions: str | None,
    gold: str | None,
    moved: tuple[str, ...],
    host: str,
    port: int,
    only_runs: bool,
) -> None:
    """Serve pages over all samples of FOLDER until interrupted.

    FOLDER is a store of labels or regions, training shards (also a glob or brace pattern), an evaluation, a run, or
    a folder of runs. Boxes are filtered and sorted over the whole store, which is indexed first.

    \b
    Example: self-train view runs/demo
             self-train view labels --phrases phrases --shards crawl --regions regions
    """
    from pipeline.report.server import listen, serve

    options = {"phrases": phrases, "crawl": expand_crawl(crawl) if crawl else [], "regions": regions, "gold": gold}
    site = _site(folders, options, _moved(moved), only_runs)
    with listen(host, port) as listener:
        site.prepare(Terminal())
        name = f"[{host}]" if ":" in host else host
        click.echo(f"http://{name}:{listener.getsockname()[1]}/  (Ctrl-C ends it)")
        serve(site.app(), listener)


def _moved(texts: tuple[str, ...]) -> dict[str, list[str]]:
    shards: dict[str, list[str]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"--set-shards {text!r}: want NAME=SHARDS")
        shards[name] = shards.get(name, []) + expand_shards(path)
    return shards


def _site(folders: tuple[str, ...], options: Mapping[str, Any], moved: dict[str, list[str]], only_runs: bool) -> Site:
    from pipeline.report.view import Site, evaluation_sources, shard_source
    from pipeline.runs.status import runs_in

    folder, title = Path(folders[0]), ", ".join(folders)
    is_run, evaluation = ((folder / name).is_file() for name in ("config.yaml", "metrics.json"))
    has_shards = folder.is_dir() and bool(shards_in(folder) or shards_in(folder, ".parquet"))
    if not (is_run or evaluation or only_runs or (runs_in(folder) and not has_shards)):
        if moved:
            raise InputError(f"{title}: found no evaluation (metrics.json), which --set-shards is for")
        return Site(title, {"": shard_source(expand_stores(folders), **options)})
    if moved and not evaluation:
        raise InputError(f"{title}: found runs; want the folder of an evaluation with --set-shards")
    if len(folders) > 1 or any(options.values()):
        what = "an evaluation" if evaluation else "a run"
        raise InputError(f"{folders[0]}: found {what}; want no other folder and no options of labels with it")
    if evaluation:
        return Site(title, evaluation_sources(folder, moved))
    return Site(title, {}, lambda: {folder.resolve().name: folder} if is_run else runs_in(folder))
