"""rescore: score stored regions against their phrases, with CLIP, SigLIP or a vision-language model.

Tables keep their rows and get one more column, or two; filter-boxes reads all kinds.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pipeline.annotators.region_text import check_region_text, load_region_text
from pipeline.annotators.verifier import check_verifier, load_verifier
from pipeline.data.records import STORE_VERSION
from pipeline.errors import InputError
from pipeline.execution.inference import InferenceWorker, inference_workers
from pipeline.execution.reports import StageReport
from pipeline.execution.run import run_workers
from pipeline.execution.worker import ShardJob
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.model_folder import model_revision
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_crawl
from pipeline.labelling.rescoring import STAGE, RegionTextShard, VerifierShard
from pipeline.stages.jobs import Rescore
from pipeline.system.devices import resolved_precision


def run(job: Rescore) -> StageReport:
    """Write ``out/<shard>.parquet`` (records.RESCORED or ANSWERED) for every crawl shard.

    Raises:
        InputError: the scorer or verifier cannot be used, a shard has no regions, or there is no such
            device.
        RunError: more than ``max_failed`` shards failed (one fails if it loses more than
            ``max_lost_share``).
    """
    precision = resolved_precision(job.settings.precision, job.device)
    settings = job.settings.model_copy(update={"precision": precision})
    load: Any
    shard_of: Any
    if job.scorer is not None and job.verifier is None:
        model = {"scorer": model_revision(job.scorer)}
        check_region_text(job.scorer, settings)
        load, shard_of = partial(load_region_text, job.scorer, settings), RegionTextShard
        config = settings.model_dump(mode="json", exclude={"verifier"})
    elif job.verifier is not None and job.scorer is None:
        model = {"verifier": model_revision(job.verifier)}
        check_verifier(job.verifier)
        load, shard_of = partial(load_verifier, job.verifier, settings), VerifierShard
        config = settings.model_dump(mode="json", include={"precision", "max_lost_share"})
        config["verifier"] = settings.verifier.model_dump(mode="json")
    else:
        found = "neither --scorer nor" if job.scorer is None else "both --scorer and"
        raise InputError(f"rescore: found {found} --verifier; want one of them")

    def regions_of(shard: str) -> str:
        return join(job.regions, f"{stem(shard)}.parquet")

    def fingerprint_of(shard: ShardJob) -> str:
        inputs = {"crawl": digest_file(shard.path), "regions": digest_file(regions_of(shard.path))}
        return fingerprint(STAGE, version=STORE_VERSION, config=config, inputs=inputs, **model)

    shards = expand_crawl(job.shards)
    require_files(path for shard in shards for path in (shard, regions_of(shard)))
    scoring = partial(
        InferenceWorker, load, partial(shard_of, settings, job.regions, job.out),
    )  # fmt: skip
    workers = inference_workers(scoring, job, len(shards))
    jobs = [ShardJob(shard, stem(shard)) for shard in shards]
    return run_workers(STAGE, jobs, job.out, workers, job, fingerprint_of=fingerprint_of)
