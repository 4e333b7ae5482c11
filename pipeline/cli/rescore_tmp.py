"""The rescore command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import DEVICE, MAX_FAILED, OUT, SHARDS, expand, stage_command, terminal

if TYPE_CHECKING:
    from pipeline.execution.reports import StageReport


@stage_command("rescore", name="rescore")
@SHARDS
@click.option("--regions", required=True, help="Folder that pseudo-label wrote.")
@click.option("--scorer", required=True, help="Model folder of a CLIP, SigLIP or SigLIP2.")
@OUT
@DEVICE
@MAX_FAILED
def rescore(
    config: Any, shards: tuple[str, ...], regions: str, scorer: str, out: str, device: str, max_failed: int
) -> StageReport:
    """Compare the crop of every stored region with its phrase; the result is one more column, region_text.

    \b
    Example: rescore --shards 'crawl/{00000..00099}.tar' --regions regions --scorer siglip --out rescored
    """
    from pipeline.io.model_folder import model_revision
    from pipeline.stages import rescore as stage

    paths = expand(shards)
    model_revision(scorer)  # a wrong folder is told before anything is loaded
    return stage.run(
        config, paths, out, regions=regions, scorer=scorer, device=device, progress=terminal(), max_failed=max_failed
    )
