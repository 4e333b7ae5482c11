"""Statistics of many shards, counted in one or several processes and merged in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InputError, RunError
from pipeline.execution.prefetch import submit_ahead
from pipeline.execution.progress import Progress, Silent
from pipeline.execution.reports import FailedShard, StageReport
from pipeline.inspection.bins import BINS, FREQUENCIES
from pipeline.inspection.counts import Counts, Picture, Pictures
from pipeline.inspection.label_store import LabelStore
from pipeline.inspection.label_tables import count_table
from pipeline.inspection.phrase_counts import TextCounts
from pipeline.inspection.tars import count_tar, kind_of_tar
from pipeline.io.files import file_size
from pipeline.io.paths import stem
from pipeline.io.tables import open_parquet
from pipeline.system.devices import cores

Kind = Literal["training", "crawl", "labels", "regions"]
PARALLEL_FROM = 512 << 20
"""Bytes of shards above which several processes are started, which takes seconds."""


class Histogram(BaseModel):
    """counts: label of a bin -> count, in order, without empty bins at the ends."""

    model_config = ConfigDict(extra="forbid")

    title: str
    counts: dict[str, int]


class Summary(BaseModel):
    """Statistics of shards.

    extent: (height, width) of the smallest and the largest image. phrases: the most frequent, with
    their numbers of boxes. problems: reason -> count. notes: messages of the first problems.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    shards: int
    numbers: dict[str, int]
    tables: dict[str, dict[str, int]]
    histograms: dict[str, Histogram]
    distinct_phrases: int
    phrases: list[tuple[str, int]]
    extent: list[tuple[int, int]]
    problems: dict[str, int]
    notes: list[str]
    failed: list[FailedShard] = Field(default_factory=list)


def kind_of(shards: Sequence[str]) -> Kind:
    """Kind of the shards, from the first readable one with a sample; "crawl" for tars without
    samples.

    Raises:
        InputError: neither tars nor tables of the label store, or none of them can be read.
    """
    first_error: InputError | OSError | None = None
    read = 0
    for shard in shards:
        try:
            kind = _kind_of_table(shard) if shards[0].endswith(".parquet") else kind_of_tar(shard)
        except (InputError, OSError) as error:
            first_error = first_error or error
            continue
        read += 1
        if kind is not None:
            return kind
    if first_error is not None and not read:
        raise first_error
    return "crawl"


def _kind_of_table(path: str) -> Kind:
    columns = open_parquet(path).schema_arrow.names
    if "score" not in columns:
        raise InputError(f"{path}: want labels (filter-boxes) or regions (pseudo-label); it has {', '.join(columns)}")
    return "labels" if "status" in columns else "regions"


def inspect_shards(
    shards: Sequence[str],
    *,
    phrases: str | None = None,
    crawl: Sequence[str] = (),
    regions: str | None = None,
    gold: str | None = None,
    pictures: int = 24,
    top: int = 50,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Summary, list[Picture]]:
    """Compute statistics of shards, reading each once.

    Memory use is 16 bytes per distinct phrase (50 at the peak) and sample, plus the pictures.

    Args:
        phrases: for a label store: folder of parse-phrases' output.
        crawl: for a label store: crawl shards, for the pictures.
        regions, gold: for labels: folders of the regions that were filtered and of gold boxes, for
            the pictures (:class:`pipeline.inspection.label_store.LabelStore`).
        pictures: maximum number of samples to draw.
        top: number of most frequent phrases.
        workers: processes; default: one per core if there is enough to read.

    Returns:
        The summary, and the pictures by shard and key. Unreadable shards are listed in ``failed``.

    Raises:
        InputError: unknown kind of shards, no readable shard, or ``phrases`` or ``crawl`` given for
            training or crawl shards.
        RunError: a process died.
    """
    kind, progress = kind_of(shards), progress or Silent()
    if kind in {"training", "crawl"} and (phrases or crawl or regions or gold):
        raise InputError(
            "--phrases, --shards, --regions and --gold are for labels or regions; these are "
            f"{kind} shards, which have texts and images"
        )
    total, keys, texts = Counts(), list[np.ndarray](), TextCounts()
    selection, failed = Pictures(pictures), list[FailedShard]()
    progress.begin("inspect", len(shards))
    drawn = pictures if phrases or crawl or kind in {"training", "crawl"} else 0
    count = partial(count_shard, kind=kind, phrases=phrases, pictures=drawn)
    for counts in _counted(count, shards, workers or default_workers(shards)):
        if isinstance(counts, FailedShard):
            failed.append(counts)
        else:
            total.merge(counts)
            keys.append(np.array(counts.keys, np.uint64))
            texts.add(list(counts.phrases), np.fromiter(counts.phrases.values(), np.int64, len(counts.phrases)))
            for picture in counts.pictures:
                selection.add(picture)
            progress.advance(counts.numbers["samples"], "samples")
        progress.advance(1, "shards")
    progress.end(StageReport(stage="inspect"))
    if len(failed) == len(shards):
        raise InputError(f"no shard can be read; first: {failed[0].error}")
    chosen = selection.chosen()
    if kind in {"labels", "regions"} and chosen:
        store = LabelStore(shards, phrases=phrases, crawl=crawl, regions=regions, gold=gold)
        chosen = [_of_store(store, picture, total) for picture in chosen]
    return _summary(kind, len(shards), total, keys, texts, top, failed), chosen


def _of_store(store: LabelStore, picture: Picture, counts: Counts) -> Picture:
    """A picture with its sample, and its image unless it cannot be had, which is counted."""
    place = store.find(picture.shard, picture.key)
    assert place is not None, picture.key  # it was chosen from this table
    try:
        image = store.image(*place)
    except (InputError, OSError) as error:
        counts.problem("picture_not_at_hand", str(error))
        image = None
    return replace(picture, sample=store.samples(place[0])[place[1]], image=image)


def count_shard(shard: str, *, kind: Kind, phrases: str | None, pictures: int) -> Counts | FailedShard:
    """Statistics of one shard, or the reason of its failure."""
    try:
        if kind in {"training", "crawl"}:
            return count_tar(shard, records=kind == "training", pictures=pictures)
        return count_table(shard, status=kind == "labels", phrases=phrases, pictures=pictures)
    except (InputError, OSError) as error:
        return FailedShard(shard=stem(shard), error=str(error))


def default_workers(shards: Sequence[str]) -> int:
    """Number of processes: one per core, but no more than shards, if the shards are large; else 1."""
    size = 0
    for shard in shards:
        size += file_size(shard) or 0
        if size > PARALLEL_FROM:
            return min(cores(), len(shards))
    return 1


def _counted(count: Any, shards: Sequence[str], workers: int) -> Iterator[Counts | FailedShard]:
    """Statistics in the order of the shards, with a bounded number of shards in flight."""
    if workers == 1:
        yield from map(count, shards)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for _, future in submit_ahead(pool, count, shards, 2 * workers):
                yield future.result()
        except BrokenProcessPool:
            raise RunError("a worker process died (out of memory?)") from None


def _summary(
    kind: Kind, shards: int, total: Counts, keys: Sequence[np.ndarray], texts: TextCounts, top: int,
    failed: list[FailedShard],
) -> Summary:  # fmt: skip
    all_keys = np.concatenate([np.zeros(0, np.uint64), *keys])
    duplicates = len(all_keys) - len(np.unique(all_keys))
    problems: Mapping[str, int] = {**total.problems, "key_in_another_shard": duplicates}
    counts = texts.counts
    histograms = {name: _histogram(BINS[name].title, BINS[name].labels, n) for name, n in total.histograms.items()}
    histograms["phrase_frequencies"] = _histogram(FREQUENCIES.title, FREQUENCIES.labels, FREQUENCIES.count(counts))
    return Summary(
        kind=kind,
        shards=shards - len(failed),
        numbers={"samples": 0, **{name: n for name, n in sorted(total.numbers.items()) if n}},
        tables={name: dict(sorted(t.items(), key=lambda i: (-i[1], i[0]))) for name, t in sorted(total.tables.items())},
        histograms={name: h for name, h in histograms.items() if h.counts},
        distinct_phrases=len(counts),
        phrases=texts.top(top),
        extent=total.extent,
        problems={reason: n for reason, n in sorted(problems.items()) if n},
        notes=total.notes,
        failed=failed,
    )


def _histogram(title: str, labels: Sequence[str], counts: np.ndarray) -> Histogram:
    filled = np.flatnonzero(counts)
    if not len(filled):
        return Histogram(title=title, counts={})
    span = range(int(filled[0]), int(filled[-1]) + 1)
    return Histogram(title=title, counts={labels[i]: int(counts[i]) for i in span})
