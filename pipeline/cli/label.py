"""Commands that label a crawl and build training shards from the labels."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.common import echo_lines, job_command, load_section, make_job
from pipeline.execution.reports import StageReport
from pipeline.io.files import file_size
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_crawl, shards_in
from pipeline.stages.jobs import (
    BuildShards,
    ExportLabels,
    FilterBoxes,
    ParsePhrases,
    PseudoLabel,
    Rescore,
    SweepThresholds,
)

PILOT_GRID = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Thresholds whose labels a pilot estimates."""


@job_command(ParsePhrases)
def parse_phrases(values: dict[str, Any]) -> StageReport:
    """Find the noun phrases of a crawl's captions.

    \b
    Example: parse-phrases --shards 'crawl/{00000..00099}.tar' --out phrases --workers 8
    """
    return make_job(ParsePhrases, values).run()


@job_command(PseudoLabel)
def pseudo_label(values: dict[str, Any]) -> StageReport:
    """Detect the phrases of a crawl with a teacher; store every region above a low floor.

    Shards and folders may be paths or URLs (s3://, gs://, https://). Several runs may share OUT:
    each shard is labelled by one of them. The report shows images per second, time by part of the
    work and, with --limit, an estimate of the rest and of the labels at several thresholds.

    \b
    Example: pseudo-label --shards 'crawl/{00000..00099}.tar' --teacher glip-t --device cuda --out store/regions
    """
    job = make_job(PseudoLabel, values)
    report = job.run()
    if job.limit is not None:
        echo_lines(_estimated_labels(job, click.get_current_context().params["recipe"]))
    return report


@job_command(PseudoLabel, "label-images", without=("shards", "phrases", "names", "limit", "price"), report=False)
@click.argument("pictures", nargs=-1, required=True, metavar="IMAGES...")
@click.option("--names", required=True, help=str(PseudoLabel.model_fields["names"].description))
@click.option(
    "--threshold", type=click.FloatRange(0, 1), help="Lowest score of a label.  [default: the recipe's, or 0.5]"
)
@click.option("--images", type=click.Choice(["copy", "none"]), help="Copy the images beside the COCO file, or none.")
def label_images(
    values: dict[str, Any], pictures: tuple[str, ...], names: str, threshold: float | None, images: Any
) -> None:
    """Detect class names in IMAGES, as COCO labels and a page of pictures.

    IMAGES are folders of image files, lists of their paths (.txt), Parquet tables with an image column, or shards.

    Runs pseudo-label, filter-boxes, export-labels and inspect with OUT/regions, OUT/labels, OUT/coco
    and OUT/labels.html; what is done already is skipped.

    \b
    Example: label-images photos --names 'person. fork lift' --teacher glip-t --out labelled
    """
    from pipeline.inspection.summary import inspect_shards
    from pipeline.report.inspect import write_page

    out, changes = values["out"], [] if threshold is None else [f"threshold={threshold}"]
    recipe = click.get_current_context().params["recipe"]
    regions, labels, coco, page = (join(out, name) for name in ("regions", "labels", "coco", "labels.html"))
    progress = values["progress"]
    label = make_job(PseudoLabel, values | {"shards": pictures, "names": names, "out": regions})
    keep = FilterBoxes(
        regions=(regions,), out=labels, settings=load_section("filter_boxes", recipe, changes), progress=progress
    )
    for job in (label, keep):
        report = job.run()
        echo_lines(report.lines())
        report.require_usable()
    export = ExportLabels(dirs=(labels,), to="coco", out=coco, crawl=pictures, images=images, progress=progress)
    if export.finished() is None:
        echo_lines(export.run().report.lines())
    summary, chosen = inspect_shards(
        shards_in(labels, ".parquet"), crawl=expand_crawl(pictures), regions=regions, progress=progress
    )
    write_page(summary, chosen, page, title=f"Labels of {', '.join(pictures)}")
    click.echo(f"wrote {coco} and the page of pictures {page}")


def _estimated_labels(job: PseudoLabel, recipe: str | None) -> list[str]:
    """Labels at several thresholds in the shards done so far, and of all shards in proportion to bytes."""
    rules = load_section("filter_boxes", recipe, ["balance_to=null"])
    shards = {shard: join(job.out, f"{stem(shard)}.parquet") for shard in expand_crawl(job.shards)}
    sizes = {shard: file_size(shard) or 0 for shard in shards}
    done = [shard for shard, regions in shards.items() if file_size(regions) is not None]
    if not (size := sum(sizes[shard] for shard in done)):
        return []
    result = SweepThresholds(regions=[shards[shard] for shard in done], settings=rules, thresholds=PILOT_GRID).run()
    lines = [f"labels by filter-boxes' threshold, in {len(done):,} shards and, estimated, in all {len(shards):,}:"]
    for row in result["thresholds"]:
        total = round(row["boxes"] * sum(sizes.values()) / size)
        lines.append(f"  {row['threshold']:g}: {row['boxes']:,} boxes on {row['images']:,} images; {total:,} in all")
    return lines


@job_command(BuildShards)
@click.option(
    "--link", is_flag=True, help="Write labels only; images stay in the crawl shards (same as --set link=true)."
)
def build_shards(values: dict[str, Any], link: bool) -> StageReport:
    """Join labels and images into training shards.

    \b
    Example: build-shards --shards 'crawl/{00000..00099}.tar' --phrases phrases --labels labels --out train
    """
    if link:
        values["settings"] = values["settings"].model_copy(update={"link": True})
    return make_job(BuildShards, values).run()


@job_command(Rescore)
def rescore(values: dict[str, Any]) -> StageReport:
    """Score every stored region against its phrase, in a new column: region_text, of --scorer, or verifier.

    \b
    Example: rescore --shards 'crawl/{00000..00099}.tar' --regions regions --scorer siglip --out rescored
    Example: rescore --shards 'crawl/{00000..00099}.tar' --regions regions --verifier qwen3-vl --out verified
    """
    return make_job(Rescore, values).run()
