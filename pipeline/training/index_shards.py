"""Computes digests and indexes of training shards once, before a training reads them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.data.shard_index import index_shard
from pipeline.data.training_shards import rank_order
from pipeline.execution.prefetch import submit_ahead
from pipeline.execution.progress import Progress
from pipeline.execution.reports import StageReport
from pipeline.io.file_cache import file_version
from pipeline.io.hashing import digest_file
from pipeline.io.paths import is_url

STREAMS = 8
"""Remote shards that a process indexes at a time."""


def index_shards(shards: Sequence[str], progress: Progress) -> None:
    """Cache digest and index of every large or remote shard, unless they are cached already.

    Local shards are read one at a time, so that a shard's headers, which are spread all over it,
    are still in the page cache once its digest has been computed. Remote shards are streamed
    several at a time, as most of the time is latency; each is fetched once and not stored.

    Raises:
        InputError, RunError: as :func:`index_shard`.
    """
    remote = [s for s in shards if is_url(s)]
    large = [s for s in shards if not is_url(s) and (version := file_version(s)) is not None and version.large]
    if not large and not remote:
        return
    progress.begin("look through shards", len(large) + len(remote))
    for shard in rank_order(large):
        digest_file(shard)
        index_shard(shard)
        progress.advance(1, "shards")
    with ThreadPoolExecutor(STREAMS) as pool:
        for _, future in submit_ahead(pool, _index_remote, rank_order(remote), STREAMS):
            future.result()
            progress.advance(1, "shards")
    progress.end(StageReport(stage="look through shards"))


def _index_remote(shard: str) -> None:
    version = file_version(shard)
    if version is not None:  # else the index could not be cached
        index_shard(shard, version)
