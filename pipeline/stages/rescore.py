"""rescore: a second opinion on stored regions. The crop of every box is compared with its phrase by CLIP or SigLIP.

One row in, one row out, in the same order, with one column more; filter-boxes reads both kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pipeline.annotators.region_text import RegionText, load_region_text
from pipeline.config import RescoreConfig
from pipeline.data.crawl import image_of
from pipeline.data.images import ImageError, open_image
from pipeline.data.records import REGIONS, RESCORED, STORE_VERSION
from pipeline.errors import RunError
from pipeline.execution.progress import Progress
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_workers
from pipeline.execution.worker import EachShard, ShardJob
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.model_folder import model_revision
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import footer, read_table, write_table
from pipeline.io.tars import TarProblems, TarSample, read_tar
from pipeline.stages.jobs import Rescore

STAGE = "rescore"


def run(job: Rescore) -> StageReport:
    """Write ``out/<shard>.parquet`` (records.RESCORED) for every crawl shard.

    Raises:
        InputError: no usable scorer, or no regions for a shard.
        RunError: more than ``max_failed`` shards failed (one fails if it loses more than ``max_lost_share``).
    """
    config, out, regions, scorer, device = job.settings, job.out, job.regions, job.scorer, job.device
    revision = model_revision(scorer)
    load_region_text(scorer, config, device)  # a wrong folder is refused before any shard

    def fingerprint_of(shard: ShardJob) -> str:
        inputs = {"crawl": digest_file(shard.path), "regions": digest_file(join(regions, f"{shard.name}.parquet"))}
        return fingerprint(STAGE, version=STORE_VERSION, config=config, inputs=inputs, scorer=revision)

    shards = expand_shards(job.shards)

    require_files(path for shard in shards for path in (shard, join(regions, f"{stem(shard)}.parquet")))
    work = partial(
        _rescore_shard, config=config, out=out, regions=regions, scorer=scorer, device=device, progress=job.progress
    )
    jobs = [ShardJob(shard, stem(shard)) for shard in shards]
    return run_workers(STAGE, jobs, out, [EachShard(work)], job, fingerprint_of=fingerprint_of)


@dataclass
class _Shard:
    """A shard's regions: rows of each key, and what became of its images."""

    boxes: np.ndarray
    sizes: np.ndarray
    rows: dict[str, np.ndarray]
    problems: TarProblems = field(default_factory=TarProblems)
    samples: Tally = field(default_factory=Tally)
    scores: Tally = field(default_factory=Tally)

    @classmethod
    def of(cls, table: pa.Table) -> _Shard:
        """Of a table of REGIONS."""
        keys = table["key"].combine_chunks().dictionary_encode()
        codes = keys.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
        return cls(
            boxes=np.stack([table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], 1).astype(np.float64),
            sizes=np.stack([table[name].to_numpy() for name in ("height", "width")], 1),
            rows=dict(zip(keys.dictionary.to_pylist(), groups, strict=True)),
        )

    def lose(self, key: str, rows: np.ndarray, reason: str, note: str) -> None:
        """An image that cannot be looked at: its regions stay, without a score."""
        self.samples.drop(reason)
        self.scores.drop("image_lost", len(rows))
        self.problems.notes.append(f"{key}: {note}")


@dataclass(frozen=True)
class _Batch:
    """Crops as the scorer wants them; for each region of theirs, its row in the table and its crop."""

    crops: dict[str, Tensor]
    rows: np.ndarray
    which: np.ndarray
    images: int


def _rescore_shard(
    job: ShardJob,
    *,
    config: RescoreConfig,
    out: str | Path,
    regions: str | Path,
    scorer: str | Path,
    device: str,
    progress: Progress,
) -> ShardReport:
    judge = load_region_text(scorer, config, device)
    path = join(regions, f"{job.name}.parquet")
    table = read_table(path, REGIONS)
    shard = _Shard.of(table)
    phrases = table["phrase"].combine_chunks().dictionary_encode()
    texts, cut = judge.texts(phrases.dictionary.to_pylist())
    phrase = phrases.indices.to_numpy()
    values = np.full(len(table), np.nan, np.float32)
    with ThreadPoolExecutor(1) as reader:  # the next batch is read and decoded while this one is scored
        batches = _batches(job.path, shard, judge, config.batch_size)
        upcoming = reader.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = reader.submit(next, batches, None)
            values[batch.rows] = judge.scores(batch.crops, batch.which, texts[phrase[batch.rows]])
            progress.advance(batch.images, "images")
    lost = sum(shard.samples.dropped.values())
    if lost > config.max_lost_share * max(shard.samples.seen, 1):
        raise RunError(
            f"{job.path}: {lost} of {shard.samples.seen} images lost ({shard.samples.dropped}); "
            f"allowed share: {config.max_lost_share}"
        )
    name = f"{job.name}.parquet"
    column = pa.array(values, pa.float32(), mask=np.isnan(values))
    about = {
        "stage": STAGE,
        "fingerprint": job.fingerprint,
        "version": str(STORE_VERSION),
        "scorer": f"{judge.name}@{judge.revision}",
        "rescore": config.model_dump_json(),
    }
    output = write_table(
        join(out, name),
        table.append_column(RESCORED.field("region_text"), column),
        RESCORED,
        footer(table.schema) | about,
    )
    tallies = {"samples": shard.samples, "scores": shard.scores}
    return job.report(STAGE, {name: output}, tallies, numbers={"phrases_cut": float(cut)}, problems=shard.problems)


def _batches(path: str, shard: _Shard, judge: RegionText, size: int) -> Iterator[_Batch]:
    """The shard's crops in its own order, ``size`` at a time; every image is decoded once and every image is counted."""
    crops: list[dict[str, Tensor]] = []
    rows: list[np.ndarray] = []
    images = 0
    waiting = dict(shard.rows)

    def ready(count: int) -> _Batch:
        which = np.repeat(np.arange(count), [len(r) for r in rows[:count]])
        stacked = {key: torch.stack([crop[key] for crop in crops[:count]]) for key in crops[0]}
        return _Batch(stacked, np.concatenate(rows[:count]), which, images)

    for sample in read_tar(path, shard.problems):
        mine = waiting.pop(sample.key, None)
        if mine is None:
            continue
        try:
            image = _image(sample, tuple(shard.sizes[mine[0]]))
        except ImageError as error:
            shard.lose(sample.key, mine, error.reason, str(error))
            continue
        made, which = judge.crops(image, shard.boxes[mine])
        crops += made
        rows += [mine[which == i] for i in range(len(made))]
        images += 1
        shard.samples.keep()
        shard.scores.keep(len(mine))
        while len(crops) >= size:
            yield ready(size)
            del crops[:size], rows[:size]
            images = 0
    if crops:
        yield ready(len(crops))
    for key, mine in waiting.items():
        shard.lose(key, mine, "not_in_shard", "its regions are stored, but the shard does not hold it")


def _image(sample: TarSample, size: tuple[int, int]) -> Image.Image:
    found = image_of(sample)
    if found is None:
        raise ImageError("no_image", "the shard holds no image for its regions")
    image = open_image(found[1])
    if (image.height, image.width) != size:
        raise ImageError(
            "image_changed", f"{image.height} x {image.width} pixels, its regions were found in {size[0]} x {size[1]}"
        )
    return image
