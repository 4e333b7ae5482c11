"""Command that serves a page on which people review the regions of a store."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.common import command
from pipeline.errors import InputError
from pipeline.execution.progress import Terminal
from pipeline.io.paths import is_url
from pipeline.io.shard_patterns import expand_crawl, expand_shards

ORDERS = ("uncertain", "disagreement", "rare", "random", "stratified")
"""As :data:`pipeline.filtering.review_order.ORDERS`, without its imports."""


@command("review")
@click.option("--regions", multiple=True, required=True, help="Store of regions or labels; a folder, or a pattern.")
@click.option("--shards", "crawl", multiple=True, required=True, help="The crawl's shards, for the images.")
@click.option("--phrases", help="Folder that parse-phrases wrote, for captions and for phrases without a region.")
@click.option("--verdicts", help="Folder to append verdicts to.  [default: the store's, with -verdicts at its end]")
@click.option("--order", type=click.Choice(ORDERS), default=ORDERS[0], help="Which regions come first.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.5, help="Score above which the rule keeps regions.")
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    help="Score above which regions are reviewed; of labels, all kept ones are.  [default: the threshold; with "
    "uncertain its half]",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the random orders, and of ties.")
@click.option("--by", help="Name to state in the verdicts.  [default: the login name]")
@click.option("--host", default="127.0.0.1", help="Address to listen on; the default admits this machine only.")
@click.option("--port", type=click.IntRange(0, 65535), default=4211, help="Port; 0: any free one.")
def review(
    regions: tuple[str, ...],
    crawl: tuple[str, ...],
    phrases: str | None,
    verdicts: str | None,
    order: Any,
    threshold: float,
    least: float | None,
    seed: int,
    by: str | None,
    host: str,
    port: int,
) -> None:
    """Serve a page on which a person accepts, rejects, moves and draws boxes, until interrupted.

    A verdict is on this machine's file system before the page shows it as saved. With the orders random and
    stratified the page estimates the precision of the regions under review.

    \b
    Example: review --regions regions --shards crawl --phrases phrases
             review --regions labels --shards crawl --order random
    """
    import getpass
    import secrets

    from pipeline.inspection.review_store import ReviewOptions, ReviewStore
    from pipeline.report.review import review_application
    from pipeline.report.server import listen, serve

    files = expand_shards(regions, suffix=".parquet")
    folder = files[0].rpartition("/")[0] or "."
    if verdicts is None and is_url(folder):
        raise InputError(f"{folder}: found a URL; want --verdicts with a local folder, as verdicts are appended")
    options = ReviewOptions(order, threshold, _least(order, threshold) if least is None else least, seed)
    store = ReviewStore(
        files, crawl=expand_crawl(crawl), phrases=phrases, verdicts=verdicts or f"{folder}-verdicts",
        by=by or getpass.getuser(), options=options, progress=Terminal(),
    )  # fmt: skip
    try:
        with listen(host, port) as listener:
            token, name = secrets.token_urlsafe(16), f"[{host}]" if ":" in host else host
            click.echo(f"{store.regions:,} of {store.total:,} regions to review, in {store.images:,} images")
            click.echo(f"http://{name}:{listener.getsockname()[1]}/?token={token}  (Ctrl-C ends it)")
            serve(review_application(store, token), listener)
    finally:
        store.close()


def _least(order: str, threshold: float) -> float:
    return threshold / 2 if order == "uncertain" else threshold
