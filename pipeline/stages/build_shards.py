"""build-shards: labels joined with their images into training shards, the same record as the human-labelled ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import BuildShardsConfig
from pipeline.images import ImageError, open_image
from pipeline.io.commit import write_json
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.tables import footer, read_table
from pipeline.io.tars import TarProblems, read_tar, write_tar
from pipeline.labelling.asked import Asked, read_asked
from pipeline.progress import Progress
from pipeline.records import LABELS, RECORD_VERSION, DatasetCard, GroundingRecord, Region
from pipeline.stages.base import ShardJob, run_shards
from pipeline.stages.crawl import image_of
from pipeline.stats import ShardReport, StageReport, Tally

STAGE = "build-shards"
Row = Mapping[str, Any]


def run(
    config: BuildShardsConfig,
    shards: Sequence[str],
    out: str | Path,
    *,
    phrases: str | Path,
    labels: str | Path,
    dataset: str = "pseudo",
    progress: Progress | None = None,
    workers: int = 1,
    max_failed: int = 0,
) -> StageReport:
    """``out/<dataset>-<shard>.tar`` for every crawl shard: its labelled images, untouched, each with its record.

    Args:
        phrases, labels: folders that parse-phrases and filter-boxes wrote; joined on (shard, key).
        dataset: name of the set in the records and in the files' names.
    """
    jobs = []
    for shard in shards:
        name = f"{stem(shard)}.parquet"
        inputs = {
            "crawl": digest_file(shard),
            "phrases": digest_file(join(phrases, name)),
            "labels": digest_file(join(labels, name)),
        }
        mark = fingerprint(STAGE, version=RECORD_VERSION, config=config, inputs=inputs, dataset=dataset)
        jobs.append(ShardJob(shard, stem(shard), mark))
    work = partial(
        _build_shard, config=config, out=Path(out), phrases=str(phrases), labels=str(labels), dataset=dataset
    )
    report = run_shards(STAGE, jobs, out, work, progress=progress, workers=workers, max_failed=max_failed)
    card = DatasetCard(name=dataset, kind="grounding", source="pseudo-labels; each region names its annotator")
    write_json(Path(out) / f"{dataset}.dataset.json", card.model_dump(mode="json", exclude_none=True))
    return report


def _build_shard(
    job: ShardJob, *, config: BuildShardsConfig, out: Path, phrases: str, labels: str, dataset: str
) -> ShardReport:
    asked = read_asked(join(phrases, f"{job.name}.parquet"))
    label_file = join(labels, f"{job.name}.parquet")
    annotator = footer(label_file).get("teacher") or None
    rows: dict[str, list[Row]] = {}
    for row in read_table(label_file, LABELS).to_pylist():
        rows.setdefault(row["key"], []).append(row)
    samples, regions, problems = Tally(), Tally(), TarProblems()
    samples.drop("no_label", sum(key not in rows for key in asked))
    waiting = set(rows)

    def records() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        for sample in read_tar(job.path, problems):
            if sample.key not in waiting:
                continue
            waiting.discard(sample.key)
            found = image_of(sample)
            try:
                if found is None:
                    raise ImageError("no_image", "the sample has labels but no image")
                image = open_image(found[1])
                record = make_record(
                    sample.key,
                    dataset,
                    (image.height, image.width),
                    asked[sample.key],
                    rows[sample.key],
                    annotator,
                    config,
                )
            except ImageError as error:
                samples.drop(error.reason)
                regions.drop("image_lost", len(rows[sample.key]))
                problems.notes.append(f"{sample.key}: {error}")
                continue
            samples.keep()
            regions.keep(len(record.regions))
            regions.drop("outside_image", len(rows[sample.key]) - len(record.regions))
            yield sample.key.replace("/", "_"), {found[0]: found[1], "json": record.to_json()}

    name = f"{dataset}-{job.name}.tar"
    output = write_tar(out / name, records())
    for key in waiting:
        samples.drop("not_in_shard")
        regions.drop("image_lost", len(rows[key]))
    return job.report(STAGE, {name: output}, {"samples": samples, "regions": regions}, problems=problems)


def make_record(
    key: str,
    dataset: str,
    size: tuple[int, int],
    asked: Asked,
    rows: Sequence[Row],
    annotator: str | None,
    config: BuildShardsConfig,
) -> GroundingRecord:
    """The grounding record of one image. ``size`` (height, width); boxes are clipped to it.

    Phrases without a kept region become ``uncertain``: the teacher's silence is no proof of absence.
    """
    height, width = size
    span_of = dict(zip(asked.rows, asked.spans, strict=True))
    root_of = dict(zip(asked.rows, asked.roots, strict=True))
    regions, sure = [], set()
    for row in rows:
        box = (
            max(0.0, float(row["x1"])), max(0.0, float(row["y1"])),
            min(float(width), float(row["x2"])), min(float(height), float(row["y2"])),
        )  # fmt: skip
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        span = span_of[row["phrase_row"]]
        ignore = row["status"] == "ignore"
        if not ignore:
            sure.add(row["phrase_row"])
        regions.append(
            Region(
                box=tuple(round(v, 2) for v in box),
                phrase=asked.caption[slice(*span)],
                tokens_positive=(span,),
                score=round(float(row["score"]), 4),
                annotator=annotator,
                root=root_of[row["phrase_row"]],
                ignore=ignore,
            )
        )
    uncertain = tuple(s for r, s in span_of.items() if r not in sure) if config.keep_uncertain else ()
    return GroundingRecord(
        key=key.replace("/", "_"),
        dataset=dataset,
        kind="grounding",
        image_size=size,
        caption=asked.caption,
        regions=tuple(regions),
        uncertain=uncertain,
    )
