"""Commands on existing shards: inspect summarises them, dedup finds evaluation images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli.common import FILE, command, echo_lines, job_command, make_job
from pipeline.execution.progress import Terminal
from pipeline.io.shard_patterns import expand_crawl, expand_shards, is_shard, shards_in
from pipeline.stages.jobs import Dedup

if TYPE_CHECKING:
    from pipeline.dedup.report import DedupReport


F = TypeVar("F", bound=Callable[..., Any])


def store_options(function: F) -> F:
    """Decorate a command with the options that say what belongs to a store of labels or regions."""
    for option in (
        click.option("--gold", help="For labels or regions: a folder of gold tables, to show which boxes are right."),
        click.option(
            "--regions", help="For labels: the folder of regions that filter-boxes read, to show the dropped ones."
        ),
        click.option("--shards", "crawl", multiple=True, help="For labels or regions: the crawl's shards, for images."),
        click.option("--phrases", help="For labels or regions: the folder that parse-phrases wrote, for captions."),
    ):  # the last is the first in the help
        function = option(function)
    return function


@command("inspect")
@click.argument("shards", nargs=-1, required=True, metavar="DIR...")
@store_options
@click.option("--html", default="inspect.html", type=FILE, help="File for the HTML page.")
@click.option("--no-html", is_flag=True, help="Print the summary only.")
@click.option("--json", "json_file", type=FILE, help="Also write the summary as JSON.")
@click.option("--pictures", type=click.IntRange(0), default=24, help="Images drawn on the page.")
@click.option(
    "--top", type=click.IntRange(0, 1 << 16), default=50, help="Most frequent phrases in the page and the JSON."
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes.  [default: all cores from half a gigabyte on, else 1]"
)
def inspect(
    shards: tuple[str, ...],
    phrases: str | None,
    crawl: tuple[str, ...],
    regions: str | None,
    gold: str | None,
    html: str,
    no_html: bool,
    json_file: str | None,
    pictures: int,
    top: int,
    workers: int | None,
) -> None:
    """Summarise DIR: training shards, a crawl, labels or regions; a folder, glob or brace pattern.

    Prints counts, histograms, the most frequent phrases and problems, and writes an HTML page with
    drawn images that needs no network. The choice of images depends on their names alone.

    \b
    Example: inspect train --html train.html
             inspect labels --phrases phrases --shards crawl --html labels.html
    """
    from pipeline.inspection.summary import inspect_shards
    from pipeline.inspection.terminal import lines
    from pipeline.io.atomic import write_json
    from pipeline.report.inspect import write_page

    summary, chosen = inspect_shards(
        expand_stores(shards), phrases=phrases, crawl=expand_crawl(crawl) if crawl else [],
        regions=regions, gold=gold, pictures=0 if no_html else pictures, top=top, workers=workers, progress=Terminal(),
    )  # fmt: skip
    if not no_html:
        write_page(summary, chosen, html, title=f"What is in {', '.join(shards)}")
    echo_lines(lines(summary))
    if json_file:
        write_json(json_file, summary.model_dump(mode="json"))
    if not no_html:
        click.echo(f"wrote {html}")


def expand_stores(patterns: tuple[str, ...]) -> list[str]:
    """Expand patterns to a crawl's or training shards, or to tables of the label store where a folder has no tars."""
    from pipeline.io.paths import is_url
    from pipeline.io.virtual_shards import image_column

    def tables(pattern: str) -> bool:
        if Path(pattern).is_dir() or (is_url(pattern) and not is_shard(pattern.rsplit("/", 1)[-1])):
            found = [] if shards_in(pattern) else shards_in(pattern, ".parquet")
            return bool(found) and (is_url(pattern) or image_column(found[0]) is None)
        return pattern.endswith(".parquet") and (is_url(pattern) or image_column(pattern) is None)

    return expand_shards(patterns, suffix=".parquet") if all(map(tables, patterns)) else expand_crawl(patterns)


@job_command(Dedup)
def dedup(values: dict[str, Any]) -> DedupReport:
    """Find images of SHARDS (of a crawl or training set) that are near-duplicates of evaluation
    images.

    OUT gets matches.parquet, report.md, and pairs.html with the pairs side by side. build-shards
    --without OUT/matches.parquet leaves them out of a crawl's training shards; --drop writes shards
    of any kind without them.

    \b
    Example: dedup 'crawl/{00000..00099}.tar' --against 'lvis=train/lvis_minival-*.tar' \\
        --against flickr30k/test --out dedup
    """
    job = make_job(Dedup, values)
    report, dropped = job.run()
    echo_lines(report.lines())
    if dropped is not None:
        echo_lines(dropped.lines())
        dropped.require_usable()
    click.echo(f"wrote {job.out}/matches.parquet, {job.out}/report.md, {job.out}/pairs.html")
    return report
