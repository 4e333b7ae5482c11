"""Samples as pages show them: an image with boxes of known status and verdict, and stores of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from pipeline.data.records import Box, GroundingRecord, Span
from pipeline.data.training_shards import ShardSet
from pipeline.io.paths import stem

Status = Literal["kept", "ignored", "dropped", "gold"]
Verdict = Literal["", "right", "wrong", "missed"]


@dataclass(frozen=True)
class ShownBox:
    """A box of a sample, absolute xyxy in pixels.

    spans: of the phrase in the caption. score: None for human labels. status: "ignored" is neither
    positive nor negative; "dropped" was filtered out; "gold" is ground truth that the other boxes
    are compared with. verdict: "right" or "wrong" if the box is compared with gold; "missed": a
    gold box without a right one; "" else.
    """

    box: Box
    phrase: str
    score: float | None = None
    spans: tuple[Span, ...] = ()
    status: Status = "kept"
    verdict: Verdict = ""

    @property
    def area(self) -> float:
        """Area in square pixels."""
        x1, y1, x2, y2 = self.box
        return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Status and verdict, without an empty one."""
        return (self.status, self.verdict) if self.verdict else (self.status,)


@dataclass(frozen=True)
class Sample:
    """One image's labels. size: (height, width). uncertain: caption spans that are not negatives."""

    shard: str
    key: str
    size: tuple[int, int]
    caption: str | None
    boxes: tuple[ShownBox, ...]
    uncertain: tuple[Span, ...] = ()

    @property
    def name(self) -> str:
        """``SHARD/KEY``."""
        return f"{self.shard}/{self.key}"


def record_sample(shard: str, key: str, record: GroundingRecord) -> Sample:
    """The sample of a training record."""
    boxes = tuple(
        ShownBox(r.box, r.phrase, r.score, r.tokens_positive, "ignored" if r.ignore else "kept") for r in record.regions
    )
    return Sample(shard, key, record.image_size, record.caption, boxes, record.uncertain)


class SampleStore(Protocol):
    """Samples by shard, in order, and their images."""

    @property
    def shards(self) -> Sequence[str]:
        """Names of the shards."""

    @property
    def least(self) -> float:
        """Score from which a page shows boxes at first."""

    def samples(self, shard: int) -> Sequence[Sample]:
        """All samples of a shard. Raises InputError if it cannot be read."""

    def image(self, shard: int, row: int) -> bytes:
        """Encoded image of a sample. Raises InputError, RunError or OSError if it cannot be read."""


class TrainingStore:
    """The records of training shards (:class:`SampleStore`).

    Raises:
        InputError: a shard is missing or damaged, or a record is invalid; ``inspect`` counts these.
    """

    least = 0.0

    def __init__(self, shards: Sequence[str]) -> None:
        self.records = ShardSet(shards)
        self.shards = [stem(shard) for shard in shards]
        self.samples = lru_cache(maxsize=4)(self._samples)

    def _samples(self, shard: int) -> list[Sample]:
        records = (self.records.record(shard, row) for row in range(self.records.counts[shard]))
        return [record_sample(self.shards[shard], record.key, record) for record in records]

    def image(self, shard: int, row: int) -> bytes:
        """Encoded image of a sample."""
        return self.records.image(shard, row)


def evenly_spaced(store: SampleStore, limit: int) -> Iterator[tuple[int, int]]:
    """(shard, row) of up to ``limit`` samples with kept boxes, evenly spaced in at most ``limit``
    evenly spaced shards; a shard's are yielded before the next is read.
    """
    shards = _evenly(range(len(store.shards)), limit)
    for number, shard in enumerate(shards):
        rows = [n for n, s in enumerate(store.samples(shard)) if any(box.status == "kept" for box in s.boxes)]
        share = limit // len(shards) + (number < limit % len(shards))
        yield from ((shard, row) for row in _evenly(rows, share))


def _evenly(items: Sequence[int], limit: int) -> list[int]:
    """Up to ``limit`` evenly spaced items."""
    n = min(limit, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def phrases_of(boxes: Iterable[ShownBox]) -> list[str]:
    """Distinct phrases of boxes that are not ignored, in order."""
    return list(dict.fromkeys(box.phrase for box in boxes if box.status != "ignored"))
