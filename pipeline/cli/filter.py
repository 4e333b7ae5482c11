"""The commands that choose labels: filter-boxes (with --sweep), count-phrases and calibrate. None of them needs a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import FILE, expand, stage_command, terminal
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.execution.reports import StageReport

REGIONS = click.option(
    "--regions",
    required=True,
    multiple=True,
    help="What pseudo-label wrote: a folder, glob or brace pattern; paths or URLs.",
)
COUNTS = click.option("--counts", help="What count-phrases wrote; balance_to and thresholds by frequency need it.")
IOU = click.option("--iou", type=click.FloatRange(0, 1, min_open=True), default=0.5, help="IoU at which a box fits.")


def _numbers(text: str, kind: type, option: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"{option} {text!r}: want numbers with commas between them") from None


def _write_json(value: Any) -> None:
    from pipeline.io.atomic import write_json

    if path := click.get_current_context().params["report_json"]:
        write_json(path, value)


@stage_command("filter_boxes", name="filter-boxes")
@REGIONS
@click.option("--out", help="Folder for the outputs. What is done there already is not done again.")
@click.option("--thresholds", help="What calibrate wrote; takes the place of the threshold setting.")
@COUNTS
@click.option(
    "--sweep",
    is_flag=False,
    flag_value="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    metavar="[T,T,...]",
    help="Write nothing; print what each of these thresholds would keep.",
)
@click.option("--gold", help="With --sweep: folder of gold tables, for precision and recall.")
@IOU
@click.option("--workers", type=click.IntRange(1), default=1, help="Shards worked on at a time.")
@click.option("--max-failed", type=click.IntRange(0), default=0, help="Shards that may fail before the run does.")
def filter_boxes(
    config: Any,
    regions: tuple[str, ...],
    out: str | None,
    thresholds: str | None,
    counts: str | None,
    sweep: str | None,
    gold: str | None,
    iou: float,
    workers: int,
    max_failed: int,
) -> StageReport | None:
    """Choose which stored regions become labels. Needs no image and no GPU.

    \b
    Example: filter-boxes --regions regions --out labels --set threshold=0.5 --set best_per_phrase=1
             filter-boxes --regions regions --out labels --set preset=grit
             filter-boxes --regions regions --sweep --gold gold
    """
    paths = expand(regions, ".parquet")
    if sweep is not None:
        if thresholds is not None:
            raise InputError("--sweep tries thresholds of its own; leave --thresholds out")
        if counts is not None:
            raise InputError("--counts are of one threshold; leave them out with --sweep")
        from pipeline.filtering import sweep as sweeping

        grid = _numbers(sweep, float, "--sweep")
        result = sweeping.sweep(config, paths, grid, gold=gold, iou=iou, progress=terminal())
        for line in sweeping.lines(result):
            click.echo(line)
        _write_json(result)
        return None
    if out is None:
        raise InputError("want --out FOLDER for the labels, or --sweep to see what thresholds would keep")
    if gold is not None:
        raise InputError("--gold goes with --sweep; to fit thresholds on gold use calibrate")
    from pipeline.stages import filter_boxes as stage

    return stage.run(
        config, paths, out,
        thresholds=thresholds, counts=counts, progress=terminal(), workers=workers, max_failed=max_failed,
    )  # fmt: skip


@stage_command("filter_boxes", name="count-phrases")
@REGIONS
@click.option("--out", required=True, type=FILE, help="Parquet file for the counts.")
@click.option("--min-count", type=click.IntRange(1), default=10, help="Leave out phrases that are rarer.")
@click.option("--thresholds", help="What calibrate wrote, if filter-boxes is going to use it.")
@COUNTS
def count_phrases(
    config: Any, regions: tuple[str, ...], out: str, min_count: int, thresholds: str | None, counts: str | None
) -> None:
    """Count how often each phrase is mentioned, and how many of its regions the rules keep.

    Calibrating by frequency and balancing (balance_to) over a whole store need it.

    \b
    Example: count-phrases --regions regions --out counts.parquet --set preset=glip
    """
    from pipeline.filtering.counting import count_phrases as count

    n, file = count(
        config,
        expand(regions, ".parquet"),
        out,
        thresholds=thresholds,
        counts=counts,
        min_count=min_count,
        progress=terminal(),
    )
    click.echo(f"{out}: {n:,} phrases with {min_count:,} mentions or kept regions and more")
    _write_json({"phrases": n, "min_count": min_count, "bytes": file.bytes, "sha256": file.sha256})


@stage_command("filter_boxes", name="calibrate")
@REGIONS
@click.option("--gold", required=True, help="Folder of gold tables, named as the shards are.")
@click.option("--out", required=True, type=FILE, help="JSON file for the thresholds.")
@click.option("--precision", type=click.FloatRange(0, 1), default=0.9, help="Share of kept boxes that must fit.")
@COUNTS
@click.option("--bands", default="100,1000,10000", help="Mentions at which the second and later bands begin.")
@click.option(
    "--by",
    type=click.Choice(["estimate", "lower"]),
    default="estimate",
    help="What must reach the precision: the sample's own, or the lower end of its 95 % interval.",
)
@click.option(
    "--min-labels", type=click.IntRange(1), default=50, help="Boxes of the sample that a threshold must keep."
)
@IOU
def calibrate(
    config: Any,
    regions: tuple[str, ...],
    gold: str,
    out: str,
    precision: float,
    counts: str | None,
    bands: str,
    by: Any,
    min_labels: int,
    iou: float,
) -> None:
    """Fit the threshold that reaches a precision on gold boxes, for each band of phrase frequency.

    \b
    Example: calibrate --regions sample/regions --gold sample/gold --counts counts.parquet \\
        --precision 0.9 --out thresholds.json
    """
    from pipeline.filtering import calibration

    result = calibration.calibrate(
        config, expand(regions, ".parquet"), gold, out,
        precision=precision, counts=counts, bands=_numbers(bands, int, "--bands"), by=by, min_labels=min_labels, iou=iou,
        progress=terminal(),
    )  # fmt: skip
    for line in calibration.lines(result):
        click.echo(line)
    _write_json(result.model_dump(mode="json"))
