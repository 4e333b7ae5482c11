"""pseudo-label: the teacher boxes the phrases of a crawl. The expensive step, run once.

Every region above a low floor is stored with its evidence, so that any rule can be applied later without the teacher.
Batches are formed inside a shard as a function of that shard alone, so a restart gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.annotators.base import Annotations, Annotator, ask, load_annotator
from pipeline.config import PseudoLabelConfig
from pipeline.errors import RunError
from pipeline.images import ImageError, open_image
from pipeline.io.hashing import digest_file, fingerprint, model_revision
from pipeline.io.paths import join, stem
from pipeline.io.tables import read_table, write_table
from pipeline.io.tars import TarProblems, TarSample, read_tar
from pipeline.progress import Progress, Silent
from pipeline.records import PHRASES, REGIONS, STORE_VERSION, Span
from pipeline.stages.base import ShardJob, run_shards
from pipeline.stages.crawl import image_of
from pipeline.stats import ShardReport, StageReport, Tally

STAGE = "pseudo-label"
WINDOW = 32
"""Batches whose images are decoded together; they are sorted by caption and shape before they are cut."""


@dataclass(frozen=True)
class Asked:
    """What is asked about one image: its caption, and for each phrase its row in the phrases file, span and root."""

    caption: str
    rows: tuple[int, ...]
    spans: tuple[Span, ...]
    roots: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A decoded image and what is asked about it; ``place`` is its place in the shard."""

    place: int
    key: str
    image: Image.Image
    asked: Asked


def run(
    config: PseudoLabelConfig,
    shards: Sequence[str],
    out: str | Path,
    *,
    phrases: str | Path,
    teacher: str | Path,
    device: str = "cpu",
    progress: Progress | None = None,
    max_failed: int = 0,
) -> StageReport:
    """``out/<shard>.parquet`` (records.REGIONS) for every crawl shard.

    Args:
        phrases: folder that parse-phrases wrote.
        teacher: model folder; its family decides the annotator.

    Raises:
        InputError: no phrases for a shard, or no usable teacher.
        RunError: more than ``max_failed`` shards failed (one fails if it loses more than ``max_lost_share``).
    """
    revision = model_revision(teacher)
    jobs = []
    for shard in shards:
        inputs = {
            "crawl": digest_file(shard),
            "phrases": digest_file(join(phrases, f"{stem(shard)}.parquet")),
        }
        mark = fingerprint(STAGE, version=STORE_VERSION, config=config, inputs=inputs, teacher=revision)
        jobs.append(ShardJob(shard, stem(shard), mark))
    progress = progress or Silent()
    work = partial(
        _label_shard,
        config=config,
        out=Path(out),
        phrases=str(phrases),
        teacher=str(teacher),
        device=device,
        progress=progress,
    )
    return run_shards(STAGE, jobs, out, work, progress=progress, max_failed=max_failed)


def read_asked(path: str | Path) -> dict[str, Asked]:
    """key -> what is asked about it, from a phrases file, in the shard's order."""
    rows = read_table(path, PHRASES, ["key", "caption", "start", "end", "root"]).to_pylist()
    by_key: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for place, row in enumerate(rows):
        by_key.setdefault(row["key"], []).append((place, row))
    return {
        key: Asked(
            caption=mine[0][1]["caption"],
            rows=tuple(place for place, _ in mine),
            spans=tuple((row["start"], row["end"]) for _, row in mine),
            roots=tuple(row["root"] for _, row in mine),
        )
        for key, mine in by_key.items()
    }


def _label_shard(
    job: ShardJob,
    *,
    config: PseudoLabelConfig,
    out: Path,
    phrases: str,
    teacher: str,
    device: str,
    progress: Progress,
) -> ShardReport:
    annotator = load_annotator(teacher, config, device)
    asked = read_asked(join(phrases, f"{job.name}.parquet"))
    problems, samples, tally = TarProblems(), Tally(), Tally()
    waiting = dict(asked)
    labelled: list[tuple[Pair, Annotations]] = []
    for pairs, broken in _windows(job.path, asked, config.batch_size * WINDOW, problems):
        for key, error in broken:
            samples.drop(error.reason)
            problems.notes.append(f"{key}: {error}")
        for batch in batches(pairs, config.batch_size, annotator):
            labelled += zip(batch, _ask(annotator, batch), strict=True)
            samples.keep(len(batch))
            progress.advance(len(batch), "images")
        for pair in pairs:
            del waiting[pair.key]
        for key, _ in broken:
            tally.drop("image_lost", len(waiting.pop(key).rows))
    for missing in waiting.values():
        samples.drop("not_in_shard")
        tally.drop("image_lost", len(missing.rows))
    lost = sum(samples.dropped.values())
    if lost > config.max_lost_share * max(samples.seen, 1):
        raise RunError(
            f"{job.path}: {lost} of {samples.seen} samples lost ({samples.dropped}); allowed share: {config.max_lost_share}"
        )
    labelled.sort(key=lambda item: item[0].place)
    columns = _columns(labelled, config, tally)
    name = f"{job.name}.parquet"
    output = write_table(
        out / name,
        pa.table(columns, schema=REGIONS),
        REGIONS,
        {
            "stage": STAGE,
            "fingerprint": job.fingerprint,
            "version": str(STORE_VERSION),
            "teacher": f"{annotator.name}@{annotator.revision}",
            "config": config.model_dump_json(),
        },
    )
    numbers = {"regions": float(len(columns["key"]))}
    return job.report(STAGE, {name: output}, {"samples": samples, "phrases": tally}, numbers=numbers, problems=problems)


Window = tuple[list[Pair], list[tuple[str, ImageError]]]


def _windows(shard: str, asked: dict[str, Asked], size: int, problems: TarProblems) -> Iterator[Window]:
    """Decoded pairs, ``size`` at a time; the next window is read and decoded while this one is labelled."""
    wanted = ((place, s) for place, s in enumerate(read_tar(shard, problems)) if s.key in asked)

    def decode() -> Window:
        pairs: list[Pair] = []
        broken: list[tuple[str, ImageError]] = []
        for place, sample in islice(wanted, size):
            try:
                pairs.append(Pair(place, sample.key, _decode(sample), asked[sample.key]))
            except ImageError as error:
                broken.append((sample.key, error))
        return pairs, broken

    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(decode)
        while True:
            window = upcoming.result()
            if not window[0] and not window[1]:
                return
            upcoming = reader.submit(decode)
            yield window


def _decode(sample: TarSample) -> Image.Image:
    found = image_of(sample)
    if found is None:
        raise ImageError("no_image", "the sample has a caption but no image")
    return open_image(found[1])


def batches(pairs: Sequence[Pair], size: int, annotator: Annotator) -> Iterator[list[Pair]]:
    """Pairs of like shape and caption length together: little of a batch is then padding."""

    def shape(pair: Pair) -> tuple[int, int, int]:
        aspect = round(4 * np.log2(pair.image.width / pair.image.height))
        return int(aspect), len(pair.asked.caption), pair.place

    order = sorted(pairs, key=shape)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _ask(annotator: Annotator, batch: Sequence[Pair]) -> list[Annotations]:
    return ask(
        annotator, [p.image for p in batch], [annotator.questions(p.asked.caption, p.asked.spans)[0][0] for p in batch]
    )


def _columns(labelled: Sequence[tuple[Pair, Annotations]], config: PseudoLabelConfig, tally: Tally) -> dict[str, list]:
    """Columns of REGIONS: by sample, phrase row and falling score; ``tally`` counts phrases with and without regions."""
    columns: dict[str, list] = {name: [] for name in REGIONS.names}
    for pair, found in labelled:
        for phrase, (row, (start, end)) in enumerate(zip(pair.asked.rows, pair.asked.spans, strict=True)):
            mine = np.flatnonzero(found.phrase == phrase)
            mine = mine[np.argsort(-found.score[mine], kind="stable")][: config.max_regions_per_phrase]
            if not len(mine):
                tally.drop("no_region")
            else:
                tally.keep()
            for rank, i in enumerate(mine):
                values = (
                    pair.key, row, pair.asked.caption[start:end], start, end, *(float(v) for v in found.boxes[i]),
                    float(found.score[i]), float(found.token_mean[i]), float(found.token_min[i]),
                    float(found.token_max[i]), _known(found.centerness[i]), rank, pair.image.height, pair.image.width,
                )  # fmt: skip
                for name, value in zip(REGIONS.names, values, strict=True):
                    columns[name].append(value)
    return columns


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
