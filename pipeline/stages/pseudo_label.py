"""pseudo-label: the teacher boxes the phrases of a crawl. The expensive step, run once.

Every region above a low floor is stored with its evidence, so that any rule can be applied later without the teacher.
Batches are formed inside a shard as a function of that shard alone, so a restart gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.annotators.base import load_annotator
from pipeline.config import PseudoLabelConfig
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
from pipeline.labelling.worker import STAGE, LabellingShard


def run(
    config: PseudoLabelConfig,
    shards: Sequence[str],
    out: str | Path,
    *,
    phrases: str | Path,
    teacher: str | Path,
    device: str = "cpu",
    processes: int | None = None,
    decoders: int | None = None,
    limit: int | None = None,
    price: float | None = None,
    progress: Progress | None = None,
    max_failed: int = 0,
) -> StageReport:
    """``out/<shard>.parquet`` (records.REGIONS) for every crawl shard.

    Args:
        phrases: folder that parse-phrases wrote. teacher: model folder; its family decides the annotator.
        processes: each holds the teacher; default: one a GPU, one on the CPU. decoders: decoding threads in each.
        limit: label at most so many shards now. price: of a device-hour, for the report.

    Raises:
        InputError: no phrases for a shard, no usable teacher, or no such device.
        RunError: more than ``max_failed`` shards failed (one fails if it loses more than ``max_lost_share``).
    """
    revision = model_revision(teacher)

    def asked(shard: str) -> str:
        return join(phrases, f"{stem(shard)}.parquet")

    def fingerprint_of(job: ShardJob) -> str:
        inputs = {"crawl": digest_file(job.path), "phrases": digest_file(asked(job.path))}
        return fingerprint(STAGE, version=STORE_VERSION, config=config, inputs=inputs, teacher=revision)

    require_files(p for shard in shards for p in (shard, asked(shard)))
    labelling = partial(
        InferenceWorker, partial(load_annotator, str(teacher), config),
        partial(LabellingShard, config, str(phrases), str(out)),
    )  # fmt: skip
    workers = inference_workers(labelling, device, processes, decoders, len(shards))
    return run_workers(
        STAGE,
        [ShardJob(shard, stem(shard)) for shard in shards],
        out,
        workers,
        fingerprint_of=fingerprint_of,
        progress=progress,
        max_failed=max_failed,
        limit=limit,
        price=price,
    )
