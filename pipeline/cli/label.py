"""Commands that label a crawl and build training shards from the labels."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.common import job_command, make_job
from pipeline.execution.reports import StageReport
from pipeline.stages.jobs import BuildShards, ParsePhrases, PseudoLabel, Rescore


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
    work and, with --limit, an estimate of the rest.

    \b
    Example: pseudo-label --shards 'crawl/{00000..00099}.tar' --teacher glip-t --device cuda --out store/regions
    """
    return make_job(PseudoLabel, values).run()


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
    """Score the crop of every stored region against its phrase, in a new column, region_text.

    \b
    Example: rescore --shards 'crawl/{00000..00099}.tar' --regions regions --scorer siglip --out rescored
    """
    return make_job(Rescore, values).run()
