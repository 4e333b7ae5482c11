"""rescore: a second score of stored regions, by CLIP or SigLIP, which compare the crop of a box with its phrase.

One row in, one row out, in the same order, with one column more; filter-boxes reads both kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.annotators.region_text import check_region_text, load_region_text
from pipeline.config import RescoreConfig
from pipeline.data.records import STORE_VERSION
from pipeline.execution.inference import InferenceWorker, inference_workers
from pipeline.execution.progress import Progress
from pipeline.execution.reports import StageReport
from pipeline.execution.run import run_workers
from pipeline.execution.worker import ShardJob
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.model_folder import model_revision
from pipeline.io.paths import join, stem
from pipeline.labelling.rescoring import STAGE, RescoringShard


def run(
    config: RescoreConfig,
    shards: Sequence[str],
    out: str | Path,
    *,
    regions: str | Path,
    scorer: str | Path,
    device: str = "cpu",
    processes: int | None = None,
    decoders: int | None = None,
    limit: int | None = None,
    price: float | None = None,
    progress: Progress | None = None,
    max_failed: int = 0,
) -> StageReport:
    """``out/<shard>.parquet`` (records.RESCORED) for every crawl shard.

    Args:
        regions: folder that pseudo-label wrote. scorer: folder of a CLIP, SigLIP or SigLIP2.
        processes: each holds the scorer; default: one a GPU, one on the CPU. decoders: decoding threads in each.
        limit: rescore at most so many shards now. price: of a device-hour, for the report.

    Raises:
        InputError: no usable scorer, no regions for a shard, or no such device.
        RunError: more than ``max_failed`` shards failed (one fails if it loses more than ``max_lost_share``).
    """
    revision = model_revision(scorer)
    check_region_text(scorer, config)

    def regions_of(shard: str) -> str:
        return join(regions, f"{stem(shard)}.parquet")

    def fingerprint_of(job: ShardJob) -> str:
        inputs = {"crawl": digest_file(job.path), "regions": digest_file(regions_of(job.path))}
        return fingerprint(STAGE, version=STORE_VERSION, config=config, inputs=inputs, scorer=revision)

    require_files(path for shard in shards for path in (shard, regions_of(shard)))
    scoring = partial(
        InferenceWorker, partial(load_region_text, str(scorer), config),
        partial(RescoringShard, config, str(regions), str(out)),
    )  # fmt: skip
    workers = inference_workers(scoring, device, processes, decoders, len(shards))
    jobs = [ShardJob(shard, stem(shard)) for shard in shards]
    return run_workers(
        STAGE, jobs, out, workers, fingerprint_of=fingerprint_of, progress=progress, max_failed=max_failed,
        limit=limit, price=price,
    )  # fmt: skip
