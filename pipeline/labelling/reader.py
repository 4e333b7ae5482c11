"""Shards as windows of questions: read ahead of the teacher, a bounded number of samples and bytes at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.annotators.base import Annotator
from pipeline.annotators.batches import Item
from pipeline.data.caption_phrases import read_caption_phrases
from pipeline.data.crawl import image_of
from pipeline.data.images import ImageError, image_size
from pipeline.execution.worker import WorkQueue
from pipeline.io.paths import join
from pipeline.io.tars import TarSample, read_tar
from pipeline.labelling.region_table import ShardResult

WINDOW_SAMPLES = 1024
WINDOW_BYTES = 128 << 20
"""A window ends at the sample that fills one of these: questions are sorted within it, so it is a function of the shard."""
SHARDS_IN_HAND = 2
"""One with the teacher, one being read: a process that is killed loses little, and leaves the others their share."""


@dataclass
class Window:
    """Some of a shard's questions; ``last`` if no more come."""

    shard: ShardResult
    items: list[Item] = field(default_factory=list)
    last: bool = False


class Reader:
    """Takes shards from the queue and gives their windows, one after the other. A shard that cannot be read ends with its error."""

    def __init__(
        self, queue: WorkQueue, annotator: Annotator, phrases: str, spent: Callable[[str, float], None]
    ) -> None:
        self._desk, self._annotator, self._phrases, self._spent = queue, annotator, phrases, spent
        self._room = threading.Semaphore(SHARDS_IN_HAND)

    def through(self) -> None:
        """A shard has left the teacher: the next may be read."""
        self._room.release()

    def __iter__(self) -> Iterator[Window]:
        while True:
            self._room.acquire()
            job = self._desk.take()
            if job is None:
                return
            shard = ShardResult(job)
            try:
                yield from self._windows(shard)
            except Exception as error:
                shard.error = error
            yield Window(shard, last=True)

    def _windows(self, shard: ShardResult) -> Iterator[Window]:
        started = time.monotonic()
        shard.asked = read_caption_phrases(join(self._phrases, f"{shard.job.name}.parquet"))
        window, samples, size = Window(shard), 0, 0
        for place, sample in enumerate(read_tar(shard.job.path, shard.problems)):
            if shard.error is not None:  # a batch of it failed: the rest is in vain
                return
            if sample.key not in shard.asked:
                continue
            shard.keys[place] = sample.key
            try:
                window.items += self._items(shard, place, sample)
            except ImageError as error:
                shard.lose(place, error)
                continue
            samples += 1
            size += sum(map(len, sample.files.values()))
            if samples >= WINDOW_SAMPLES or size >= WINDOW_BYTES:
                self._spent("read", time.monotonic() - started)
                yield window
                window, samples, size, started = Window(shard), 0, 0, time.monotonic()
        self._spent("read", time.monotonic() - started)
        if window.items:
            yield window

    def _items(self, shard: ShardResult, place: int, sample: TarSample) -> list[Item]:
        found = image_of(sample)
        if found is None:
            raise ImageError("no_image", "the sample has a caption but no image")
        height, width = shard.sizes[place] = image_size(found[1])
        asked = shard.asked[sample.key]
        questions, missing = self._annotator.questions(asked.caption, asked.spans)
        shard.beyond_limit[place] = len(missing)
        shape = self._annotator.shape(width, height)
        return [Item(place, sample.key, found[1], (height, width), shape, question) for question in questions]
