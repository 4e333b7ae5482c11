"""One labelling process: shards from a queue go through reading, decoding, the teacher and writing, all at a time.

Threads do all but the forward pass: reading tars waits for disks and networks, PIL decodes and resizes without Python's
lock, and so does Parquet's writer. The teacher runs on the thread that called, and should never wait.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline.annotators.base import Annotator, Batch, Prepared, load_annotator
from pipeline.annotators.batches import Item, batches
from pipeline.config import PseudoLabelConfig
from pipeline.data.images import ImageError, open_image
from pipeline.data.records import REGIONS, STORE_VERSION
from pipeline.errors import RunError
from pipeline.execution.prefetch import Prefetcher
from pipeline.execution.reports import ShardReport
from pipeline.execution.worker import WorkQueue
from pipeline.io.paths import join
from pipeline.io.tables import write_table
from pipeline.labelling.reader import Reader, Window
from pipeline.labelling.region_table import ShardResult
from pipeline.system.devices import is_device_lost

STAGE = "pseudo-label"
READY = 2
"""Batches that wait for the teacher beside those being decoded."""

Ready = tuple[list[Item], Batch | None]


@dataclass(frozen=True)
class LabelShards:
    """A worker (:data:`pipeline.execution.worker.Worker`): labels the queue's shards with one copy of the teacher.

    phrases, out: folders or URLs. device: torch's name of it. decoders: threads that decode. threads: torch's own, on
    the CPU; None leaves them.
    """

    config: PseudoLabelConfig
    phrases: str
    teacher: str
    out: str
    device: str
    decoders: int
    threads: int | None = None

    def __call__(self, queue: WorkQueue) -> None:
        """Until the queue has no more shards.

        Raises:
            InputError: no usable teacher. RuntimeError: the device broke down.
        """
        started = time.monotonic()
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        annotator = load_annotator(self.teacher, self.config, self.device)
        queue.spent("load", time.monotonic() - started)
        LabellingPipeline(self, annotator, queue).run()


class LabellingPipeline:
    """The line that shards go down, from reading to writing."""

    def __init__(self, settings: LabelShards, annotator: Annotator, queue: WorkQueue) -> None:
        self._settings, self._annotator, self._desk = settings, annotator, queue
        self._scaled = settings.config.decode == "scaled"

    def run(self) -> None:
        """See :class:`LabelShards`."""
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self._settings.decoders, "decode"))
            writer = stack.enter_context(ThreadPoolExecutor(1, "write"))
            reader = Reader(self._desk, self._annotator, self._settings.phrases, self._desk.spent)
            windows = stack.enter_context(Prefetcher(reader, 1, "read"))
            steps = stack.enter_context(
                Prefetcher(self._decoding(windows, pool), self._settings.decoders + READY, "plan")
            )
            writing: Future[None] | None = None
            waited = time.monotonic()
            for shard, step in steps:
                if step is not None:
                    self._label(shard, step, waited)
                else:
                    reader.through()
                    if writing is not None:
                        writing.result()  # one shard's answers wait to be written, not ever more
                    writing = writer.submit(self._finish, shard)
                waited = time.monotonic()
            if writing is not None:
                writing.result()

    def _decoding(
        self, windows: Prefetcher[Window], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[ShardResult, Future[Ready] | None]]:
        """A window's batches, each decoding already, then None for a shard's end."""
        for window in windows:
            for items in batches(window.items, self._settings.config.batch_size):
                yield window.shard, pool.submit(self._ready, window.shard, items)
            if window.last:
                yield window.shard, None

    def _ready(self, shard: ShardResult, items: list[Item]) -> Ready:
        """Decode, resize and collate a batch; images that turn out broken are left out of it."""
        if shard.error is not None:
            return [], None
        started = time.monotonic()
        whole: list[Item] = []
        images: list[Prepared] = []
        for item in items:
            try:
                image = open_image(item.data, at_least=item.shape if self._scaled else None)
                images.append(self._annotator.prepare(image, item.size))
                whole.append(item)
            except ImageError as error:
                shard.lose(item.place, error)
        batch = self._annotator.collate(images, [item.question for item in whole]) if whole else None
        self._desk.spent("decode", time.monotonic() - started)
        return whole, batch

    def _label(self, shard: ShardResult, step: Future[Ready], waited: float) -> None:
        try:
            items, batch = step.result()
            started = time.monotonic()
            self._desk.spent("wait", started - waited)
            if batch is None or shard.error is not None:
                return
            shard.answer(items, self._annotator.annotate(batch))
        except Exception as error:
            if is_device_lost(error):
                self._desk.failed(shard.job, error)
                raise
            shard.error = error
            return
        self._desk.spent("model", time.monotonic() - started)
        self._desk.advance(len(items), "images")

    def _finish(self, shard: ShardResult) -> None:
        """Write a shard's table and hand in its report."""
        started = time.monotonic()
        try:
            if shard.error is not None:
                raise shard.error
            report = self._write(shard)
        except Exception as error:
            self._desk.failed(shard.job, error)
            return
        self._desk.spent("write", time.monotonic() - started)
        self._desk.done(shard.job, report)

    def _write(self, shard: ShardResult) -> ShardReport:
        job, config = shard.job, self._settings.config
        table, tallies, notes = shard.finish(config)
        samples = tallies["samples"]
        lost = sum(samples.dropped.values())
        if lost > config.max_lost_share * max(samples.seen, 1):
            raise RunError(
                f"{job.path}: {lost} of {samples.seen} samples lost ({samples.dropped}); "
                f"allowed share: {config.max_lost_share}"
            )
        name = f"{job.name}.parquet"
        footer = {
            "stage": STAGE,
            "fingerprint": job.fingerprint,
            "version": str(STORE_VERSION),
            "teacher": f"{self._annotator.name}@{self._annotator.revision}",
            "config": config.model_dump_json(),
        }
        output = write_table(join(self._settings.out, name), table, REGIONS, footer)
        numbers = {"regions": float(table.num_rows)}
        return job.report(STAGE, {name: output}, tallies, numbers=numbers, problems=shard.problems, notes=notes)
