"""Digests and indexes of training shards, computed once before a training reads them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.data.shard_index import index_shard
from pipeline.data.training_shards import rank_order
from pipeline.execution.progress import Progress
from pipeline.execution.reports import StageReport
from pipeline.io.file_cache import file_version
from pipeline.io.hashing import digest_file
from pipeline.io.paths import is_url

STREAMS = 8
"""Shards behind a URL that a process looks through at a time."""


def look_through(shards: Sequence[str], progress: Progress) -> None:
    """Find out digest and index of shards that are worth remembering, as far as nobody did so before.

    Local ones one at a time, so that a shard's headers are in memory when its digest has been taken: they lie all over it. Of those
    behind a URL several at once, as most of the time is waiting; each is fetched once, and kept nowhere.

    Raises:
        InputError, RunError: as :func:`index_shard`.
    """
    remote = [s for s in shards if is_url(s)]
    large = [s for s in shards if not is_url(s) and (mark := file_version(s)) is not None and mark.large]
    if not large and not remote:
        return
    progress.begin("look through shards", len(large) + len(remote))
    for shard in rank_order(large):
        digest_file(shard)
        index_shard(shard)
        progress.advance(1, "shards")
    pool = ThreadPoolExecutor(STREAMS)
    try:
        for _ in pool.map(_look_into, rank_order(remote)):
            progress.advance(1, "shards")
    finally:
        pool.shutdown(cancel_futures=True)
    progress.end(StageReport(stage="look through shards"))


def _look_into(shard: str) -> None:
    mark = file_version(shard)
    if mark is not None:  # else nothing could be remembered
        index_shard(shard, mark)
