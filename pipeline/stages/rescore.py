"""rescore: score the crops of stored regions against their phrases with CLIP or SigLIP.

Tables keep their rows and get one more column; filter-boxes reads both kinds.
"""

from __future__ import annotations

from functools import partial

from pipeline.annotators.region_text import check_region_text, load_region_text
from pipeline.data.records import STORE_VERSION
from pipeline.execution.inference import InferenceWorker, inference_workers
from pipeline.execution.reports import StageReport
from pipeline.execution.run import run_workers
from pipeline.execution.worker import ShardJob
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.model_folder import model_revision
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_crawl
from pipeline.labelling.rescoring import STAGE, RescoringShard
from pipeline.stages.jobs import Rescore
from pipeline.system.devices import resolved_precision


def run(job: Rescore) -> StageReport:
    """Write ``out/<shard>.parquet`` (records.RESCORED) for every crawl shard.

    Raises:
        InputError: the scorer cannot be used, a shard has no regions, or there is no such device.
        RunError: more than ``max_failed`` shards failed (one fails if it loses more than
            ``max_lost_share``).
    """
    revision = model_revision(job.scorer)
    precision = resolved_precision(job.settings.precision, job.device)
    settings = job.settings.model_copy(update={"precision": precision})
    check_region_text(job.scorer, settings)

    def regions_of(shard: str) -> str:
        return join(job.regions, f"{stem(shard)}.parquet")

    def fingerprint_of(shard: ShardJob) -> str:
        inputs = {"crawl": digest_file(shard.path), "regions": digest_file(regions_of(shard.path))}
        return fingerprint(STAGE, version=STORE_VERSION, config=settings, inputs=inputs, scorer=revision)

    shards = expand_crawl(job.shards)
    require_files(path for shard in shards for path in (shard, regions_of(shard)))
    scoring = partial(
        InferenceWorker, partial(load_region_text, job.scorer, settings),
        partial(RescoringShard, settings, job.regions, job.out),
    )  # fmt: skip
    workers = inference_workers(scoring, job, len(shards))
    jobs = [ShardJob(shard, stem(shard)) for shard in shards]
    return run_workers(STAGE, jobs, job.out, workers, job, fingerprint_of=fingerprint_of)
