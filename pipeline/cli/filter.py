"""Commands that select labels without a GPU: merge-regions, filter-boxes, count-phrases and calibrate."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.common import echo_lines, job_command, make_job, numbers
from pipeline.errors import InputError
from pipeline.execution.reports import StageReport
from pipeline.stages.jobs import IOU, OUT, Calibrate, CountPhrases, FilterBoxes, MergeRegions, SweepThresholds


@job_command(MergeRegions)
def merge_regions(values: dict[str, Any]) -> StageReport:
    """Fuse the regions that several teachers found of the same phrases. Needs no images and no GPU.

    \b
    Example: merge-regions --regions regions-glip --regions regions-owl --out merged
             merge-regions --regions regions-glip --regions regions-owl --out agreed --set method=agree
    """
    return make_job(MergeRegions, values).run()


@job_command(FilterBoxes, without=["out"])
@click.option("--out", help=OUT)
@click.option(
    "--sweep",
    is_flag=False,
    flag_value="0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    metavar="[T,T,...]",
    help="Write nothing; print the counts that each of these thresholds would keep.",
)
@click.option("--gold", help="With --sweep: folder of ground-truth tables, for precision and recall.")
@click.option("--iou", type=click.FloatRange(0, 1, min_open=True), default=0.5, help=IOU)
def filter_boxes(
    values: dict[str, Any], out: str | None, sweep: str | None, gold: str | None, iou: float
) -> StageReport | dict[str, Any]:
    """Select the stored regions that become labels. Needs no images and no GPU.

    \b
    Example: filter-boxes --regions regions --out labels --set threshold=0.5 --set phrase_number=true
             filter-boxes --regions regions --out labels --set preset=grit
             filter-boxes --regions regions --sweep --gold gold
    """
    if sweep is None:
        if out is None:
            raise InputError("want --out FOLDER for the labels, or --sweep to count what thresholds would keep")
        if gold is not None:
            raise InputError("--gold goes with --sweep; to fit thresholds on ground truth use calibrate")
        return make_job(FilterBoxes, values | {"out": out}).run()
    if values["thresholds"] is not None:
        raise InputError("--sweep has its own thresholds; leave --thresholds out")
    if values["counts"] is not None:
        raise InputError("--counts belong to one threshold; leave them out with --sweep")
    from pipeline.filtering.sweep import lines

    kept = {name: values[name] for name in ("regions", "settings", "progress")}
    grid = numbers(sweep, float, "--sweep")
    result = make_job(SweepThresholds, kept | {"thresholds": grid, "gold": gold, "iou": iou}).run()
    echo_lines(lines(result))
    return result


@job_command(CountPhrases)
def count_phrases(values: dict[str, Any]) -> Any:
    """Count the mentions of each phrase, and its regions that the rules keep.

    Calibration by frequency and balancing (balance_to) over a whole store need the counts.

    \b
    Example: count-phrases --regions regions --out counts.parquet --set preset=glip
    """
    result = make_job(CountPhrases, values).run()
    click.echo(
        f"{values['out']}: {result.phrases:,} phrases with {result.min_count:,} mentions or kept regions and more"
    )
    return result


@job_command(Calibrate)
def calibrate(values: dict[str, Any]) -> Any:
    """Fit the threshold that reaches a precision on ground truth, by band of phrase frequency or by class name.

    Of regions of class names, without --counts, every name has a threshold; one with fewer labels than
    --min-labels has that of all names together.

    \b
    Example: calibrate --regions sample/regions --gold sample/gold --counts counts.parquet \\
        --precision 0.9 --out thresholds.json
    """
    from pipeline.filtering.calibration import lines

    result = make_job(Calibrate, values).run()
    echo_lines(lines(result))
    return result
