"""pseudo-label: detect the phrases of a crawl with a teacher. The most expensive stage, run once.

Every region above a low floor is stored with its scores, so that any rule can be applied later
without the teacher. Batches are formed inside a shard and depend on that shard alone, so a restart
gives the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from pipeline.annotators.base import load_annotator, own_settings
from pipeline.data.image_names import ImageNames, names_for
from pipeline.data.records import STORE_VERSION
from pipeline.errors import InputError, RunError
from pipeline.execution.inference import InferenceWorker, inference_workers
from pipeline.execution.reports import StageReport, Tally
from pipeline.execution.run import run_workers
from pipeline.execution.worker import ShardJob
from pipeline.io.files import file_size, listing, require_files
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.model_folder import model_revision, stated_licence
from pipeline.io.paths import join, parent, stem
from pipeline.io.samples import read_samples
from pipeline.io.shard_patterns import expand_crawl
from pipeline.labelling.worker import STAGE, LabellingShard
from pipeline.stages.jobs import ParsePhrases, PseudoLabel
from pipeline.system.devices import cores

log = logging.getLogger("glip_self_train")


def run(job: PseudoLabel) -> StageReport:
    """Write ``out/<shard>.parquet`` (records.REGIONS, NUMBERED_REGIONS or NAMED_REGIONS) for every crawl shard.

    Raises:
        InputError: a shard has no phrases, the teacher cannot be used, or there is no such device.
        RunError: more than ``max_failed`` shards failed (one fails if it loses more than
            ``max_lost_share``).
    """
    revision = model_revision(job.teacher)  # fails before any parsing
    # by name in footers and fingerprints, as stores with the former defaults have them
    settings = own_settings(job.teacher, job.settings, job.device)
    all_shards = shards = expand_crawl(job.shards)
    names = None if job.names is None else names_for(job.names)
    phrases = job.phrases or ""
    if names is not None:
        if job.phrases is not None:
            raise InputError(f"found names {job.names!r} and phrases {job.phrases}; want one of them")
    elif job.phrases is None:
        phrases = join(parent(job.out), "phrases")
        shards = _parse_missing(job, all_shards, phrases)

    def phrases_of(shard: str) -> str:
        return join(phrases, f"{stem(shard)}.parquet")

    def fingerprint_of(shard: ShardJob) -> str:
        inputs, about = {"crawl": digest_file(shard.path)}, {"teacher": revision}
        if names is None:
            inputs["phrases"] = digest_file(phrases_of(shard.path))
        elif isinstance(names, ImageNames):
            inputs["names"], about["names"] = digest_file(names.file.path), names.names.model_dump_json()
            about["image_names"] = names.file.found_by(shard.path)
        else:
            about["names"] = names.model_dump_json()
        return fingerprint(STAGE, version=STORE_VERSION, config=settings, inputs=inputs, **about)

    require_files(path for shard in shards for path in (shard, *([phrases_of(shard)] if names is None else [])))
    labelling = partial(
        InferenceWorker, partial(load_annotator, job.teacher, settings),
        partial(
            LabellingShard, settings, phrases if names is None else names, job.out,
            licence=job.licence or stated_licence(job.teacher),
        ),
    )  # fmt: skip
    workers = inference_workers(labelling, job, len(shards))
    jobs = [ShardJob(shard, stem(shard)) for shard in shards]
    report = run_workers(STAGE, jobs, job.out, workers, job, fingerprint_of=fingerprint_of)
    if (
        names is None
        and jobs
        and not report.failed
        and not report.tallies.get("samples", Tally()).seen
        and any(map(_has_sample, shards))
    ):
        raise RunError(
            f"{phrases}: found no phrase of any sample of {len(shards)} shards; want those that parse-phrases writes "
            "(run it again: it says which captions it cannot read)"
        )
    if report.rates is not None:
        report.rates.count_left(file_size(shard) or 0 for shard in set(all_shards) - set(shards))
    return report


def _has_sample(shard: str) -> bool:
    return next(read_samples(shard), None) is not None


def _parse_missing(job: PseudoLabel, shards: Sequence[str], phrases: str) -> list[str]:
    """Parse at most ``job.limit`` shards without phrases; return all shards with phrases."""

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
