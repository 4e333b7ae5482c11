"""Entry points of ``verify fit`` and of ``verify apply``, which adds the column ``verified`` to a store."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.data.records import STORE_VERSION, VERIFIED
from pipeline.errors import InputError
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob
from pipeline.filtering.store import RegionShard
from pipeline.filtering.verifier import read_verifier, verifier_digest
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import footer, read_table, write_table
from pipeline.stages.jobs import ApplyVerifier, FitVerifier

STAGE = "verify"


def fit(job: FitVerifier) -> dict[str, Any]:
    """Run :func:`pipeline.evaluation.verification.fit_verifier`."""
    from pipeline.evaluation.verification import fit_verifier

    if (job.verdicts is None) == (job.gold is None):
        raise InputError("found neither or both of --verdicts and --gold; want one of them")
    return fit_verifier(
        expand_shards(job.regions, suffix=".parquet"), job.out, verdicts=job.verdicts, gold=job.gold, iou=job.iou,
        seed=job.seed, progress=job.progress,
    )  # fmt: skip


def apply(job: ApplyVerifier) -> StageReport:
    """Write ``out/<shard>.parquet``, the store's regions with one more column.

    Raises:
        InputError: no such verifier. RunError: more than ``max_failed`` shards failed, as they lack a column.
    """
    digest = verifier_digest(job.verifier)
    read_verifier(job.verifier)

    def fingerprint_of(shard: ShardJob) -> str:
        inputs = {"regions": digest_file(shard.path), "verifier": digest}
        return fingerprint(STAGE, version=STORE_VERSION, config={}, inputs=inputs)

    work = partial(_verify_shard, verifier=job.verifier, digest=digest, out=job.out)
    jobs = [ShardJob(path, stem(path)) for path in expand_shards(job.regions, suffix=".parquet")]
    return run_shards(STAGE, jobs, job.out, work, job, fingerprint_of=fingerprint_of)


def _verify_shard(job: ShardJob, *, verifier: str, digest: str, out: str) -> ShardReport:
    shard = RegionShard(job.path)
    verified = read_verifier(verifier).verify(shard)
    table = read_table(job.path, shard.columns)
    about = footer(table.schema) | {
        "stage": STAGE, "fingerprint": job.fingerprint, "version": str(STORE_VERSION), "verifier": digest,
    }  # fmt: skip
    if VERIFIED.name in table.column_names:
        table = table.drop_columns([VERIFIED.name])
    table = table.append_column(VERIFIED, pa.array(verified, VERIFIED.type))
    name, regions = f"{job.name}.parquet", Tally()
    regions.keep(len(table))
    output = write_table(join(out, name), table, table.schema.remove_metadata(), about)
    return job.report(STAGE, {name: output}, {"regions": regions})
