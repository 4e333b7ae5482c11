"""The export command. `export` is a word of the shell's own, so it is installed as export-labels."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.common import FILE, one_line_errors, setup_logging, tell, terminal
from pipeline.system.parent_watch import exit_with_parent
from pipeline.writers.registry import DATASET, WRITTEN


@click.command("export-labels", context_settings={"show_default": True})
@click.argument("dirs", nargs=-1, required=True, metavar="DIR...")
@click.option("--to", type=click.Choice(WRITTEN), required=True, help="The format to write.")
@click.option("--out", required=True, help="A new folder for it, or a URL.")
@click.option(
    "--images",
    type=click.Choice(["copy", "none"]),
    help="Copy the images beside the labels, as they are, or write labels only.  [default: copy, where they are to be had]",
)
@click.option(
    "--phrases", help="Of a label store: the folder that parse-phrases wrote.  [default: `phrases` beside or above DIR]"
)
@click.option(
    "--shards",
    "crawl",
    multiple=True,
    help="Of a label store: the crawl that holds the images; folder, glob or pattern.",
)
@click.option("--dataset", help=f"Of a label store: the name of the set.  [default: {DATASET}]")
@click.option(
    "--classes", "class_names", type=click.Choice(["phrase", "root"]),
    help="yolo: what is the class: all of a phrase, or its head noun.  [default: phrase]",
)  # fmt: skip
@click.option("--drop-empty", is_flag=True, help="Leave out images without a label; they are counted.")
@click.option("--report-json", type=FILE, help="Also write the counts as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Tell more.")
def export_labels(
    dirs: tuple[str, ...],
    to: str,
    out: str,
    crawl: tuple[str, ...],
    report_json: str | None,
    verbose: bool,
    **options: Any,
) -> None:
    """Write our labels in the formats that others' trainers and viewers read.

    DIR is a folder or pattern of training shards (of ingest or build-shards), or a folder of labels (of filter-boxes). What
    the format has no place for is counted in the report: lost_X is not in the output, extra_X is, in a field that only
    ingest reads.

    \b
    Example: export-labels train --to coco --out coco
    Example: export-labels 'pseudo/pseudo-*.tar' --to odvg --out odvg --images none
    Example: export-labels store/labels --phrases store/phrases --shards 'crawl/{00000..00099}.tar' --to fiftyone --out fo
    """
    setup_logging(verbose)
    exit_with_parent()
    with one_line_errors("export-labels"):
        from pipeline.io.atomic import write_json
        from pipeline.stages import export as stage

        done = stage.run(dirs, out, to=to, crawl=crawl, progress=terminal(), **options)
        tell(done.report)
        for hint in done.hints:
            click.echo(f"  {hint}")
        if report_json:
            write_json(report_json, done.report.model_dump(mode="json"))
