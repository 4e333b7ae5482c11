"""Commands that look at shards: inspect shows what is in them, dedup finds evaluation images among them."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import FILE, MAX_FAILED, WORKERS, expand, one_line_errors, setup_logging, tell, terminal
from pipeline.system.parent_watch import exit_with_parent

VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Tell more.")


@click.command(context_settings={"show_default": True})
@click.argument("shards", nargs=-1, required=True, metavar="DIR...")
@click.option("--phrases", help="For labels or regions: the folder that parse-phrases wrote, for captions.")
@click.option("--shards", "crawl", multiple=True, help="For labels or regions: the crawl's shards, for pictures.")
@click.option("--html", default="inspect.html", type=FILE, help="The page.")
@click.option("--no-html", is_flag=True, help="Print only.")
@click.option("--json", "json_file", type=FILE, help="Also write everything as JSON.")
@click.option("--pictures", type=click.IntRange(0), default=24, help="Images drawn on the page.")
@click.option(
    "--top", type=click.IntRange(0, 1 << 16), default=50, help="Most frequent phrases in the page and the JSON."
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes.  [default: all cores from half a gigabyte on, else 1]"
)
@VERBOSE
def inspect(
    shards: tuple[str, ...],
    phrases: str | None,
    crawl: tuple[str, ...],
    html: str,
    no_html: bool,
    json_file: str | None,
    pictures: int,
    top: int,
    workers: int | None,
    verbose: bool,
) -> None:
    """Show what is in DIR: training shards, a crawl, labels or regions; a folder, glob or brace pattern.

    Prints counts, histograms, the most frequent phrases and problems, and writes a page with drawn images that needs no
    network. Which images are drawn depends on their names alone.

    \b
    Example: inspect train --html train.html
             inspect labels --phrases phrases --shards crawl --html labels.html
    """
    setup_logging(verbose)
    exit_with_parent()
    with one_line_errors("inspect"):
        from pipeline.inspection.summary import inspect_shards
        from pipeline.inspection.terminal import lines
        from pipeline.io.atomic import write_json
        from pipeline.report.inspect import write_page

        tars = expand(crawl) if crawl else []
        summary, chosen = inspect_shards(
            _shards(shards), phrases=phrases, crawl=tars, pictures=0 if no_html else pictures, top=top, workers=workers,
            progress=terminal(),
        )  # fmt: skip
        if not no_html:
            write_page(summary, chosen, html, title=f"What is in {', '.join(shards)}")
        for line in lines(summary):
            click.echo(line)
        if json_file:
            write_json(json_file, summary.model_dump(mode="json"))
        if not no_html:
            click.echo(f"wrote {html}")


def _shards(patterns: tuple[str, ...]) -> list[str]:
    """Tars, or the tables of a folder that has no tars."""
    from pipeline.io.files import listing
    from pipeline.io.paths import is_url

    def tables(pattern: str) -> bool:
        if pattern.endswith(".parquet"):
            return True
        folder = Path(pattern).is_dir() or (is_url(pattern) and not pattern.endswith(".tar"))
        return folder and not listing(pattern, ".tar") and bool(listing(pattern, ".parquet"))

    return expand(patterns, ".parquet" if all(map(tables, patterns)) else ".tar")


@click.command(context_settings={"show_default": True})
@click.argument("shards", nargs=-1, required=True, metavar="SHARDS...")
@click.option(
    "--against",
    multiple=True,
    required=True,
    metavar="[NAME=]EVALSET",
    help="Evaluation images: training shards (what ingest wrote) or a folder of image files. May be repeated.",
)
@click.option("--out", default="dedup", help="Folder for the hashes, which are made once, and for what was found.")
@click.option(
    "--distance", type=click.IntRange(0, 16), default=11, help="Bits of the 64-bit hash that may differ (search)."
)
@click.option(
    "--details", type=click.IntRange(0, 256), default=72, help="Bits of all 256 that may differ (the second check)."
)
@click.option("--mirrored", is_flag=True, help="Find images that are mirrored left to right, too.")
@click.option("--drop", is_flag=True, help="Also write OUT/shards: the shards without what matched.")
@click.option("--pictures", type=click.IntRange(0), default=24, help="Pairs on the page, the least alike first.")
@click.option("--report-json", type=FILE, help="Also write the counts as JSON.")
@WORKERS
@MAX_FAILED
@VERBOSE
def dedup(
    shards: tuple[str, ...],
    against: tuple[str, ...],
    out: str,
    distance: int,
    details: int,
    mirrored: bool,
    drop: bool,
    pictures: int,
    report_json: str | None,
    workers: int,
    max_failed: int,
    verbose: bool,
) -> None:
    """Find images of SHARDS (a crawl's or training shards) that are near-duplicates of evaluation images.

    OUT gets matches.parquet, report.md and pairs.html, the pairs side by side. build-shards --without OUT/matches.parquet
    leaves them out of a crawl's training shards; --drop writes shards of any kind without them.

    \b
    Example: dedup 'crawl/{00000..00099}.tar' --against 'lvis=train/lvis_minival-*.tar' --against flickr30k/test --out dedup
    """
    setup_logging(verbose)
    exit_with_parent()
    with one_line_errors("dedup"):
        from pipeline.dedup.image_sets import read_image_set
        from pipeline.dedup.search import MatchRules
        from pipeline.io.atomic import write_json
        from pipeline.stages import dedup as stage

        report, dropped = stage.run(
            expand(shards), [read_image_set(option) for option in against], out,
            rules=MatchRules(distance, details, mirrored), drop=drop, pictures=pictures, progress=terminal(),
            workers=workers, max_failed=max_failed,
        )  # fmt: skip
        for line in report.lines():
            click.echo(line)
        if dropped is not None:
            tell(dropped)
        if report_json:
            write_json(report_json, report.model_dump(mode="json"))
        click.echo(f"wrote {out}/matches.parquet, {out}/report.md, {out}/pairs.html")
