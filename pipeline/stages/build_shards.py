"""build-shards: labels joined with their images into training shards, the same record as the human-labelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.config import BuildShardsConfig
from pipeline.data.records import RECORD_VERSION
from pipeline.dedup.exclusion_list import ExclusionList
from pipeline.execution.progress import Progress
from pipeline.execution.reports import ShardReport, StageReport
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob
from pipeline.io.atomic import write_json
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.tars import TarProblems, write_tars
from pipeline.labelling.label_records import LinkedImages, ShardLabels, card_of, copied_image

STAGE = "build-shards"


def run(
    config: BuildShardsConfig,
    shards: Sequence[str],
    out: str | Path,
    *,
    phrases: str | Path,
    labels: str | Path,
    dataset: str = "pseudo",
    without: str | Path | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    max_failed: int = 0,
) -> StageReport:
    """``out/<dataset>-<shard>.tar`` for every crawl shard: its labelled images, untouched, each with its record.

    Args:
        phrases, labels: folders that parse-phrases and filter-boxes wrote; joined on (shard, key).
        dataset: name of the set in the records and in the files' names.
        without: list of samples to leave out (:class:`pipeline.dedup.exclusion_list.ExclusionList`), counted as near_duplicate.
    """

    def inputs(shard: str) -> dict[str, str]:
        name = f"{stem(shard)}.parquet"
        return {"crawl": shard, "phrases": join(phrases, name), "labels": join(labels, name)}

    def fingerprint_of(job: ShardJob) -> str:
        found = {what: digest_file(path) for what, path in inputs(job.path).items()}
        return fingerprint(
            STAGE,
            version=RECORD_VERSION,
            config=config,
            inputs=found,
            dataset=dataset,
            **unwanted.fingerprint_of(job.name),
        )

    unwanted = ExclusionList({}) if without is None else ExclusionList.read(without)
    unwanted.warn_of_unknown_ids(str(without), shards)
    require_files(path for shard in shards for path in inputs(shard).values())
    jobs = [ShardJob(shard, stem(shard)) for shard in shards]
    work = partial(
        _build_shard, config=config, out=str(out), phrases=str(phrases), labels=str(labels), dataset=dataset,
        without=unwanted,
    )  # fmt: skip
    report = run_shards(
        STAGE, jobs, out, work, fingerprint_of=fingerprint_of, progress=progress, workers=workers, max_failed=max_failed
    )
    write_json(join(out, f"{dataset}.dataset.json"), card_of(dataset).model_dump(mode="json", exclude_none=True))
    return report


def _build_shard(
    job: ShardJob,
    *,
    config: BuildShardsConfig,
    out: str,
    phrases: str,
    labels: str,
    dataset: str,
    without: ExclusionList,
) -> ShardReport:
    store = ShardLabels.read(
        join(phrases, f"{job.name}.parquet"), join(labels, f"{job.name}.parquet"), dataset, config, without.of(job.name)
    )
    problems = TarProblems()
    image_as = LinkedImages(job.path, out) if config.link else copied_image
    records = (
        (record.key, {**files, "json": record.to_json()})
        for _, record, files in store.joined(job.path, image_as, problems)
    )

    def name_of(part: int) -> str:
        return f"{dataset}-{job.name}{f'-part{part:03d}' if part else ''}.tar"

    written = write_tars(lambda part: join(out, name_of(part)), records, config.max_shard_bytes)
    outputs = {name_of(part): output for part, output in enumerate(written)}
    return job.report(STAGE, outputs, {"samples": store.samples, "regions": store.regions}, problems=problems)
