"""build-shards: join labels with their images into training shards."""

from __future__ import annotations

from functools import partial

from pipeline.config import BuildShardsConfig
from pipeline.data.crawl import MAX_UNREAD_SHARE
from pipeline.data.dataset_cards import labelled_by
from pipeline.data.name_list import NameList
from pipeline.data.records import RECORD_VERSION
from pipeline.data.verdicts import Verdicts
from pipeline.dedup.exclusion_list import ExclusionList
from pipeline.errors import InputError
from pipeline.execution.inference import check_losses
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob
from pipeline.io.atomic import write_json
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_crawl
from pipeline.io.tars import TarProblems, write_tars
from pipeline.labelling.label_records import LinkedImages, ShardLabels, copied_image, label_names, pseudo_label_card
from pipeline.stages.jobs import BuildShards

STAGE = "build-shards"


def run(job: BuildShards) -> StageReport:
    """Write ``out/<dataset>-<shard>.tar``, labelled images and records, for every crawl shard.

    Phrases and labels are joined on (shard, key). Labels of class names have no phrases, and become
    records of a detection set. Samples listed in ``without``
    (:class:`pipeline.dedup.exclusion_list.ExclusionList`) are left out and counted as
    near_duplicate. ``verdicts`` outrank the labels (docs/verdicts.md).

    Raises:
        InputError: an input is missing or invalid.
        RunError: more than ``max_failed`` shards failed (one fails if it has less than half of the
            labelled images).
    """

    def inputs(shard: str) -> dict[str, str]:
        name = f"{stem(shard)}.parquet"
        tables = {"labels": join(job.labels, name)}
        return {"crawl": shard, **({} if phrases is None else {"phrases": join(phrases, name)}), **tables}

    def fingerprint_of(shard: ShardJob) -> str:
        return fingerprint(
            STAGE,
            version=RECORD_VERSION,
            config=job.settings,
            inputs={name: digest_file(path) for name, path in inputs(shard.path).items()},
            dataset=job.dataset,
            **unwanted.fingerprint_of(shard.name),
            **({} if verdicts is None else verdicts.fingerprint_of(shard.name)),
        )

    shards = expand_crawl(job.shards)
    unwanted = ExclusionList({}) if job.without is None else ExclusionList.read(job.without)
    unwanted.warn_of_unknown_ids(str(job.without), shards)
    verdicts = None if job.verdicts is None else Verdicts.read(job.verdicts)
    if verdicts is not None:
        verdicts.warn_of_unknown_shards(map(stem, shards))
    require_files(join(job.labels, f"{stem(shard)}.parquet") for shard in shards)
    names = label_names(join(job.labels, f"{stem(shards[0])}.parquet"))
    phrases = job.phrases if names is None else None
    if names is None and phrases is None:
        raise InputError(
            f"{job.labels}: found labels of captions; want the folder that parse-phrases wrote (--phrases)"
        )
    require_files(path for shard in shards for path in inputs(shard).values())
    jobs = [ShardJob(shard, stem(shard)) for shard in shards]
    work = partial(
        _build_shard, config=job.settings, out=job.out, phrases=phrases, labels=job.labels, dataset=job.dataset,
        without=unwanted, names=names, verdicts=verdicts,
    )  # fmt: skip
    report = run_shards(STAGE, jobs, job.out, work, job, fingerprint_of=fingerprint_of)
    teachers = labelled_by([inputs(shard)["labels"] for shard in shards])
    card = pseudo_label_card(job.dataset, names).model_copy(update={"labelled_by": teachers})
    write_json(join(job.out, f"{job.dataset}.dataset.json"), card.model_dump(mode="json", exclude_none=True))
    return report


def _build_shard(
    job: ShardJob,
    *,
    config: BuildShardsConfig,
    out: str,
    phrases: str | None,
    labels: str,
    dataset: str,
    without: ExclusionList,
    names: NameList | None,
    verdicts: Verdicts | None,
) -> ShardReport:
    name = f"{job.name}.parquet"
    store = ShardLabels(
        None if phrases is None else join(phrases, name), join(labels, name), dataset, config, without.of(job.name),
        None if verdicts is None else verdicts.of(job.name),
    )  # fmt: skip
    if store.names != names:
        raise InputError(
            f"{join(labels, name)}: found other class names than the first shard's; want labels of one run"
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
    lost = {r: n for r, n in store.samples.dropped.items() if r not in ("no_label", "near_duplicate")}
    images = Tally(seen=store.samples.kept + sum(lost.values()), kept=store.samples.kept, dropped=lost)
    check_losses(job, "labelled images", images, MAX_UNREAD_SHARE)
    outputs = {name_of(part): output for part, output in enumerate(written)}
    return job.report(
        STAGE, outputs, {"samples": store.samples, "regions": store.regions}, problems=problems,
        numbers=store.numbers(), notes=store.notes,
    )  # fmt: skip
