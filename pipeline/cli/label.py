"""The commands that label a crawl and build training shards of the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import DEVICE, MAX_FAILED, OUT, SHARDS, WORKERS, expand, stage_command, tell, terminal

if TYPE_CHECKING:
    from pipeline.execution.reports import StageReport

DECODERS = click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads of each process that decode images ahead.  [default: its share of the cores, 8 at most]",
)


def _processes(model: str) -> Any:
    return click.option(
        "--processes",
        type=click.IntRange(1),
        help=f"Copies of the {model}, each in a process of its own.  [default: one a GPU; 1 on the CPU]",
    )


@stage_command("pseudo_label", name="pseudo-label")
@SHARDS
@click.option(
    "--phrases", help="Folder that parse-phrases wrote. Default: OUT/../phrases, made there if it is missing."
)
@click.option(
    "--teacher",
    required=True,
    help="Model folder of the teacher (convert-checkpoint makes one of a release).",
)
@OUT
@DEVICE
@_processes("teacher")
@DECODERS
@click.option("--limit", type=click.IntRange(1), help="Label at most so many shards now, and tell what the rest takes.")
@click.option("--price-per-hour", "price", type=click.FloatRange(0), help="Of one device; the report then tells costs.")
@MAX_FAILED
def pseudo_label(
    config: Any,
    shards: tuple[str, ...],
    phrases: str | None,
    teacher: str,
    out: str,
    device: str,
    processes: int | None,
    workers: int | None,
    limit: int | None,
    price: float | None,
    max_failed: int,
) -> StageReport:
    """Box the phrases of a crawl with a teacher; every region above a low floor is stored with its scores.

    Shards and folders may be paths or URLs (s3://, gs://, https://). Several runs may share OUT: each shard is labelled by
    one of them. The report tells images a second, where the time went and, with --limit, what the rest will take.

    \b
    Example: pseudo-label --shards 'crawl/{00000..00099}.tar' --teacher glip-t --device cuda --out store/regions
    """
    from pipeline.io.files import file_size
    from pipeline.io.model_folder import model_revision
    from pipeline.io.paths import join, parent
    from pipeline.stages import pseudo_label as stage

    paths = every = expand(shards)
    model_revision(teacher)  # a wrong folder is told before any parsing
    if phrases is None:
        phrases = join(parent(out), "phrases")
        paths = _parsed(paths, phrases, limit, max_failed)
    report = stage.run(
        config,
        paths,
        out,
        phrases=phrases,
        teacher=teacher,
        device=device,
        processes=processes,
        decoders=workers,
        limit=limit,
        price=price,
        progress=terminal(),
        max_failed=max_failed,
    )
    if report.rates is not None:
        report.rates.count_left(file_size(shard) or 0 for shard in set(every) - set(paths))
    return report


def _parsed(shards: list[str], phrases: str, limit: int | None, max_failed: int) -> list[str]:
    """Parse the shards that have no phrases yet, ``limit`` of them at most; returns those that have."""
    from pipeline.config import ParsePhrasesConfig
    from pipeline.io.files import listing
    from pipeline.io.paths import stem
    from pipeline.stages import parse_phrases as parser
    from pipeline.system.devices import cores

    def parsed() -> list[str]:
        there = {stem(path) for path in listing(phrases, ".parquet")}
        return [s for s in shards if stem(s) in there]

    before = parsed()
    missing = [s for s in shards if s not in set(before)][:limit]
    workers = min(cores(), max(1, len(missing) // 2))
    report = parser.run(
        ParsePhrasesConfig(), before + missing, phrases, progress=terminal(), workers=workers, max_failed=max_failed
    )
    tell(report)
    return parsed()


@stage_command("build_shards", name="build-shards")
@SHARDS
@click.option("--phrases", required=True, help="Folder that parse-phrases wrote.")
@click.option("--labels", required=True, help="Folder that filter-boxes wrote.")
@OUT
@click.option("--dataset", default="pseudo", help="Name of the new set.")
@click.option("--link", is_flag=True, help="Labels only; images stay in the crawl shards (same as --set link=true).")
@click.option("--without", metavar="FILE", help="Leave these samples out: what dedup wrote (columns shard and key).")
@WORKERS
@MAX_FAILED
def build_shards(
    config: Any,
    shards: tuple[str, ...],
    phrases: str,
    labels: str,
    out: str,
    dataset: str,
    link: bool,
    without: str | None,
    workers: int,
    max_failed: int,
) -> StageReport:
    """Join labels and images into training shards.

    \b
    Example: build-shards --shards 'crawl/{00000..00099}.tar' --phrases phrases --labels labels --out train
    """
    from pipeline.stages import build_shards as stage

    return stage.run(
        config.model_copy(update={"link": True}) if link else config, expand(shards), out,
        phrases=phrases, labels=labels, dataset=dataset, without=without, progress=terminal(), workers=workers,
        max_failed=max_failed,
    )  # fmt: skip


@stage_command("parse_phrases", name="parse-phrases")
@SHARDS
@OUT
@WORKERS
@MAX_FAILED
def parse_phrases(config: Any, shards: tuple[str, ...], out: str, workers: int, max_failed: int) -> StageReport:
    """Find the noun phrases of a crawl's captions.

    \b
    Example: parse-phrases --shards 'crawl/{00000..00099}.tar' --out phrases --workers 8
    """
    from pipeline.stages import parse_phrases as stage

    return stage.run(config, expand(shards), out, progress=terminal(), workers=workers, max_failed=max_failed)


@stage_command("rescore", name="rescore")
@SHARDS
@click.option("--regions", required=True, help="Folder that pseudo-label wrote.")
@click.option("--scorer", required=True, help="Model folder of a CLIP, SigLIP or SigLIP2.")
@OUT
@DEVICE
@_processes("scorer")
@DECODERS
@MAX_FAILED
def rescore(
    config: Any,
    shards: tuple[str, ...],
    regions: str,
    scorer: str,
    out: str,
    device: str,
    processes: int | None,
    workers: int | None,
    max_failed: int,
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
        config, paths, out, regions=regions, scorer=scorer, device=device, processes=processes, decoders=workers,
        progress=terminal(), max_failed=max_failed,
    )  # fmt: skip
