"""pseudo-label: the teacher boxes the phrases of a crawl. The expensive step, run once.

Every region above a low floor is stored with its evidence, so that any rule can be applied later without the teacher.
Batches are formed inside a shard as a function of that shard alone, so a restart gives the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.data.records import STORE_VERSION
from pipeline.execution.reports import StageReport
from pipeline.execution.run import run_workers
from pipeline.execution.worker import ShardJob
from pipeline.io.files import file_size, listing, require_files
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.model_folder import model_revision
from pipeline.io.paths import join, parent, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.labelling.worker import STAGE, LabelShards
from pipeline.stages.jobs import ParsePhrases, PseudoLabel
from pipeline.system.devices import MAX_DECODERS, core_share, cores, devices_of

log = logging.getLogger("glip_self_train")


def run(job: PseudoLabel) -> StageReport:
    """Write ``out/<shard>.parquet`` (records.REGIONS) for every crawl shard.

    Raises:
        InputError: no phrases for a shard, no usable teacher, or no such device.
        RunError: more than ``max_failed`` shards failed (one fails if it loses more than ``max_lost_share``).
    """
    revision = model_revision(job.teacher)  # before any parsing
    every = shards = expand_shards(job.shards)
    phrases = job.phrases
    if phrases is None:
        phrases = join(parent(job.out), "phrases")
        shards = _parse_missing(job, every, phrases)

    def phrases_of(shard: str) -> str:
        return join(phrases, f"{stem(shard)}.parquet")

    def fingerprint_of(shard: ShardJob) -> str:
        inputs = {"crawl": digest_file(shard.path), "phrases": digest_file(phrases_of(shard.path))}
        return fingerprint(STAGE, version=STORE_VERSION, config=job.settings, inputs=inputs, teacher=revision)

    require_files(path for shard in shards for path in (shard, phrases_of(shard)))
    devices = devices_of(job.device, job.processes)
    share, threads = core_share(devices)
    workers = [
        LabelShards(
            job.settings, phrases, job.teacher, job.out, name,
            decoders=job.decoders or min(MAX_DECODERS, share), threads=threads,
        )
        for name in devices[: max(1, len(shards))]
    ]  # fmt: skip
    jobs = [ShardJob(shard, stem(shard)) for shard in shards]
    report = run_workers(STAGE, jobs, job.out, workers, job, fingerprint_of=fingerprint_of)
    if report.rates is not None:
        report.rates.count_left(file_size(shard) or 0 for shard in set(every) - set(shards))
    return report


def _parse_missing(job: PseudoLabel, shards: Sequence[str], phrases: str) -> list[str]:
    """Parse the shards that have no phrases yet, ``job.limit`` of them at most; return those that have."""

    def parsed() -> list[str]:
        names = {stem(path) for path in listing(phrases, ".parquet")}
        return [s for s in shards if stem(s) in names]

    before = set(parsed())
    missing = [s for s in shards if s not in before][: job.limit]
    report = ParsePhrases(
        shards=(*before, *missing), out=phrases, workers=min(cores(), max(1, len(missing) // 2)),
        max_failed=job.max_failed, progress=job.progress, check_only=job.check_only,
    ).run()  # fmt: skip
    for line in report.lines():
        log.info(line)
    return parsed()
