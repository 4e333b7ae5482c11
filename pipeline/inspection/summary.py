"""The whole of it: shards counted one by one or in several processes, added up in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InputError, RunError
from pipeline.execution.progress import Progress, Silent
from pipeline.execution.reports import FailedShard, StageReport
from pipeline.inspection.bins import BINS, FREQUENCIES
from pipeline.inspection.counts import Counts, Picture, Pictures
from pipeline.inspection.phrase_counts import TextCounts
from pipeline.io.files import file_size
from pipeline.io.paths import stem
from pipeline.io.tables import open_parquet
from pipeline.system.devices import cores

Kind = Literal["training", "crawl", "labels", "regions"]
WORTH_PROCESSES = 512 << 20
"""Bytes of shards from which several processes are worth their start, which takes seconds."""


class Histogram(BaseModel):
    """counts: in words, in order; empty bins at the ends left out."""

    model_config = ConfigDict(extra="forbid")

    title: str
    counts: dict[str, int]


class Summary(BaseModel):
    """What is in some shards. extent: the smallest and the largest image, (height, width). phrases:
    the most frequent, and their boxes. problems: by reason; notes: the first in words.
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
    """What the shards are, by the first of them that has a sample; tars that have none are a
    crawl's.

    One that cannot be read tells nothing of the others; it will be among the failed.

    Raises:
        InputError: neither tars nor tables of the label store, or none of them can be read.
    """
    wrong: InputError | OSError | None = None
    read = 0
    for shard in shards:
        try:
            kind = _kind_of_table(shard) if shards[0].endswith(".parquet") else _kind_of_tar(shard)
        except (InputError, OSError) as error:
            wrong = wrong or error
            continue
        read += 1
        if kind is not None:
            return kind
    if wrong is not None and not read:
        raise wrong
    return "crawl"


def _kind_of_table(path: str) -> Kind:
    columns = open_parquet(path).schema_arrow.names
    if "score" not in columns:
        raise InputError(f"{path}: want labels (filter-boxes) or regions (pseudo-label); it has {', '.join(columns)}")
    return "labels" if "status" in columns else "regions"


def _kind_of_tar(shard: str) -> Kind | None:
    from pipeline.inspection.tars import holds_records

    records = holds_records(shard)
    return None if records is None else "training" if records else "crawl"


def inspect_shards(
    shards: Sequence[str],
    *,
    phrases: str | None = None,
    crawl: Sequence[str] = (),
    pictures: int = 24,
    top: int = 50,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[Summary, list[Picture]]:
    """Count what is in shards, each read once.

    Memory holds 16 bytes a distinct phrase (50 at the peak) and a sample, and the pictures; not the
    shards.

    Args:
        phrases, crawl: for a label store: the folder of parse-phrases, and the crawl's shards for
            the pictures.
        workers: processes. Default: as many as there are cores, where there is enough to read.

    Returns:
        The summary, and the pictures by shard and key. A shard that cannot be read is among
        ``failed``.

    Raises:
        InputError: no shard can be told to be one, none can be read, or there is nothing that
            ``phrases`` or ``crawl`` are for. RunError: a process broke down.
    """
    kind, progress = kind_of(shards), progress or Silent()
    if kind in {"training", "crawl"} and (phrases or crawl):
        raise InputError(
            f"--phrases and --shards go with labels or regions; these are shards of {'a crawl' if kind == 'crawl' else 'training records'}, "
            "which hold their own texts and images"
        )
    total, keys, texts = Counts(), list[np.ndarray](), TextCounts()
    chosen, failed = Pictures(pictures), list[FailedShard]()
    progress.begin("inspect", len(shards))
    one = partial(count_shard, kind=kind, phrases=phrases, pictures=pictures)
    for counts in _counted(one, shards, workers or default_workers(shards)):
        if isinstance(counts, FailedShard):
            failed.append(counts)
        else:
            total.merge(counts)
            keys.append(np.array(counts.keys, np.uint64))
            texts.add(list(counts.phrases), np.fromiter(counts.phrases.values(), np.int64, len(counts.phrases)))
            for picture in counts.pictures:
                chosen.add(picture)
            progress.advance(counts.numbers["samples"], "samples")
        progress.advance(1, "shards")
    progress.end(StageReport(stage="inspect"))
    if len(failed) == len(shards):
        raise InputError(f"no shard can be read; first: {failed[0].error}")
    found = chosen.chosen()
    if kind in {"labels", "regions"} and crawl:
        from pipeline.inspection.label_tables import with_images

        found = with_images(found, {stem(path): path for path in crawl})
    return _summary(kind, len(shards), total, keys, texts, top, failed), found


def count_shard(shard: str, *, kind: Kind, phrases: str | None, pictures: int) -> Counts | FailedShard:
    """The counts of one shard, or why there are none."""
    try:
        if kind in {"training", "crawl"}:
            from pipeline.inspection.tars import count_tar

            return count_tar(shard, records=kind == "training", pictures=pictures)
        from pipeline.inspection.label_tables import count_table

        return count_table(shard, status=kind == "labels", phrases=phrases, pictures=pictures)
    except (InputError, OSError) as error:
        return FailedShard(shard=stem(shard), error=str(error))


def default_workers(shards: Sequence[str]) -> int:
    size = 0
    for shard in shards:
        size += file_size(shard) or 0
        if size > WORTH_PROCESSES:
            return min(cores(), len(shards))
    return 1


def _counted(one: Any, shards: Sequence[str], workers: int) -> Iterator[Counts | FailedShard]:
    """Counts in the shards' order, a few shards ahead at most."""
    if workers == 1:
        yield from map(one, shards)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead = deque[Future[Counts | FailedShard]]()
        try:
            for shard in shards:
                ahead.append(pool.submit(one, shard))
                if len(ahead) >= 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise RunError("a process ended before it was done (out of memory?)") from None


def _summary(
    kind: Kind, shards: int, total: Counts, keys: Sequence[np.ndarray], texts: TextCounts, top: int,
    failed: list[FailedShard],
) -> Summary:  # fmt: skip
    every = np.concatenate([np.zeros(0, np.uint64), *keys])
    problems: Mapping[str, int] = {**total.problems, "key_in_another_shard": len(every) - len(np.unique(every))}
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
