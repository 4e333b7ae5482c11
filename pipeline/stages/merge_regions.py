"""merge-regions: fuse the regions that several teachers found of the same phrases, without images or teachers."""

from __future__ import annotations

from functools import partial

from pipeline.config import MergeConfig
from pipeline.data.records import STORE_VERSION
from pipeline.errors import InputError
from pipeline.execution.reports import ShardReport, StageReport
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import footer, open_parquet, write_table
from pipeline.labelling.merging import merge_stores
from pipeline.stages.jobs import MergeRegions

STAGE = "merge-regions"


def run(job: MergeRegions) -> StageReport:
    """Write merged regions to ``out/<shard>.parquet``.

    Raises:
        InputError: fewer than two stores, a shard that one of them lacks, or settings for another number of stores.
        RunError: more than ``max_failed`` shards failed, as the stores are of different phrases.
    """
    stores, config = _stores(job), job.settings

    def fingerprint_of(shard: ShardJob) -> str:
        inputs = {f"regions_{i}": digest_file(paths[shard.name]) for i, paths in enumerate(stores)}
        names = footer(open_parquet(stores[0][shard.name]).schema_arrow).get("names")
        kept = {} if names is None else {"names": names}  # which were not in the merged store's footer before
        return fingerprint(STAGE, version=STORE_VERSION, config=config, inputs=inputs, **kept)

    work = partial(_merge_shard, config=config, stores=stores, out=job.out)
    jobs = [ShardJob(path, name) for name, path in stores[0].items()]
    return run_shards(STAGE, jobs, job.out, work, job, fingerprint_of=fingerprint_of)


def _stores(job: MergeRegions) -> list[dict[str, str]]:
    """Shard name -> path of each store."""
    given, config = job.regions, job.settings
    if len(given) < 2 or len(set(given)) < len(given):
        raise InputError(f"--regions: found {', '.join(given)}; want two or more stores, each once")
    if config.weights and len(config.weights) != len(given):
        raise InputError(
            f"merge_regions.weights: found {len(config.weights)} for {len(given)} stores; want one of each"
        )
    if config.least > len(given):
        raise InputError(f"merge_regions.agree: found {config.least}; want at most the number of stores, {len(given)}")
    stores = [{stem(path): path for path in expand_shards(store, suffix=".parquet")} for store in given]
    names = {name: i for i, paths in enumerate(stores) for name in paths}
    for store, paths in zip(given, stores, strict=True):
        if lacking := sorted(names.keys() - paths.keys()):
            other, more = given[names[lacking[0]]], f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
            raise InputError(
                f"{store}: has no shard {lacking[0]}{more}, which {other} has; want stores of the same shards"
            )
    return stores


def _merge_shard(job: ShardJob, *, config: MergeConfig, stores: list[dict[str, str]], out: str) -> ShardReport:
    table, tally, numbers, teachers = merge_stores([paths[job.name] for paths in stores], config)
    about = {"stage": STAGE, "fingerprint": job.fingerprint, "version": str(STORE_VERSION)} | teachers
    name = f"{job.name}.parquet"
    output = write_table(join(out, name), table, table.schema, about)
    return job.report(STAGE, {name: output}, {"regions": tally}, numbers=numbers)
