"""Predictions of a model on shards of records, through the annotator that labels: like shapes together, decoding ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from pipeline.annotators.base import Annotator, Batch, Prepared, RegionPredictions, load_annotator
from pipeline.annotators.batches import Item, batches
from pipeline.config import EvaluateConfig
from pipeline.data.images import ImageError, image_size, open_image
from pipeline.data.training_shards import ShardSet
from pipeline.evaluation.predictions import PREDICTIONS, predictions_table
from pipeline.evaluation.protocols import SetSpec, best, class_chunks, joined, named_phrases
from pipeline.execution.prefetch import Prefetcher
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.worker import ShardJob, WorkQueue
from pipeline.io.paths import join
from pipeline.io.tables import write_table
from pipeline.system.devices import is_device_lost

STAGE = "evaluate"
VERSION = 3  # 2: predictions lie beside the metrics, a table a shard; 3: GLIP's boxes end behind their last pixel
WINDOW = 512
"""Images of a shard that are sorted by shape together; their bytes are held in memory."""

Ready = tuple[list[Item], list[Prepared], Batch | None]


@dataclass(frozen=True)
class DetectShards:
    """A worker (:data:`pipeline.execution.worker.Worker`): predictions of the queue's shards, by one copy of the model.

    specs: the set of each job, by the job's name. out: folder or URL. decoders: threads that decode. threads: torch's
    own, on the CPU; None leaves them.
    """

    config: EvaluateConfig
    model: str
    specs: Mapping[str, SetSpec]
    out: str
    device: str
    decoders: int = 1
    threads: int | None = None

    def __call__(self, queue: WorkQueue) -> None:
        """Until the queue has no more shards. The model is loaded when there is one.

        Raises:
            InputError: no usable model. torch's AcceleratorError: a GPU broke down; the process must end.
        """
        while (job := queue.take()) is not None:
            if self.threads is not None:
                import torch

                torch.set_num_threads(self.threads)
            spec = self.specs[job.name]
            try:
                annotator = load_annotator(self.model, spec.label_config(self.config), self.device)
                report = self._shard(job, spec, annotator, queue)
            except Exception as error:
                queue.failed(job, error)
                if is_device_lost(error):
                    raise
            else:
                queue.done(job, report)

    def _shard(self, job: ShardJob, spec: SetSpec, annotator: Annotator, queue: WorkQueue) -> ShardReport:
        shard = _Shard(job, spec, annotator, self.config)
        with ThreadPoolExecutor(self.decoders, "decode") as pool:
            with Prefetcher(self._batches(shard, pool, queue), self.decoders + 1, "plan") as steps:
                for step in steps:
                    started = time.monotonic()
                    items, images, first = step.result()
                    queue.spent("wait", time.monotonic() - started)
                    started = time.monotonic()
                    if first is not None:
                        shard.ask(items, images, first)
                    queue.spent("model", time.monotonic() - started)
                    queue.advance(len(items), "images")
        name = f"{job.name}.parquet"
        footer = {
            "stage": STAGE, "fingerprint": job.fingerprint, "version": str(VERSION), "protocol": spec.protocol,
            "model": f"{annotator.name}@{annotator.revision}",
        }  # fmt: skip
        output = write_table(join(self.out, name), predictions_table(shard.finish()), PREDICTIONS, footer)
        return job.report(STAGE, {name: output}, shard.tallies, notes=shard.notes)

    def _batches(self, shard: _Shard, pool: ThreadPoolExecutor, queue: WorkQueue) -> Iterator[Future[Ready]]:
        for items in shard.windows():
            for batch in batches(items, self.config.batch_size):
                yield pool.submit(self._decode, shard, batch, queue)

    @staticmethod
    def _decode(shard: _Shard, items: Sequence[Item], queue: WorkQueue) -> Ready:
        started = time.monotonic()
        whole, images = [], []
        for item in items:
            try:
                images.append(shard.annotator.prepare(open_image(item.data), item.size))
                whole.append(item)
            except ImageError as error:
                shard.lose(item.place, item.key, error)
        first = shard.annotator.collate(images, [item.question for item in whole]) if whole else None
        queue.spent("decode", time.monotonic() - started)
        return whole, images, first


class _Shard:
    """A shard's records, what is asked about them, and the answers as they come."""

    def __init__(self, job: ShardJob, spec: SetSpec, annotator: Annotator, config: EvaluateConfig) -> None:
        self.spec, self.annotator, self.config = spec, annotator, config
        self._records = ShardSet([job.path])
        self._chunks = [] if spec.captions else class_chunks(spec, annotator, config)
        self._found: list[list[RegionPredictions]] = [[] for _ in range(self._records.counts[0])]
        self._lost: dict[int, tuple[str, ImageError]] = {}
        self.tallies = {"phrases": Tally()} if spec.captions else {}
        self.notes: list[str] = []

    def lose(self, place: int, key: str, error: ImageError) -> None:
        """An image that gives no answer; its gold counts as missed."""
        self._lost.setdefault(place, (key, error))

    def windows(self) -> Iterator[list[Item]]:
        """The questions about some images at a time. Of class names only the first is planned: all have the same length."""
        items: list[Item] = []
        for row in range(len(self._found)):
            record, data = self._records.record(0, row), self._records.image(0, row)
            try:
                size = image_size(data)
            except ImageError as error:
                self.lose(row, record.key, error)
                continue
            if self.spec.captions:
                spans = [n.span for n in named_phrases(record, self.spec.protocol)]
                questions, missing = self.annotator.questions(record.caption or "", spans)
                self.tallies["phrases"].keep(len(spans) - len(missing))
                self.tallies["phrases"].drop("phrase_beyond_text_limit", len(missing))
                questions = questions if spans else []
            else:
                questions = self._chunks[0][:1] if self._chunks else []
            shape = self.annotator.shape(size[1], size[0])
            items += [Item(row, record.key, data, size, shape, q) for q in questions]
            if (row + 1) % WINDOW == 0:
                yield items
                items = []
        if items:
            yield items

    def ask(self, items: Sequence[Item], images: Sequence[Prepared], first: Batch) -> None:
        """One caption's question each, or all class names of each. ``first``: the first question of each, collated."""
        if self.spec.captions:
            self._keep(items, [self.annotator.annotate(first)])
            return
        further = [question for chunk in self._chunks for question in chunk][1:]
        collated = (self.annotator.collate(images, [question] * len(items)) for question in further)
        with Prefetcher(collated, 1, "collate") as following:
            batches = chain([first], following)
            for chunk in self._chunks:
                answers = [self.annotator.annotate(next(batches)) for _ in chunk]
                self._keep(items, answers, self.config.chunk_detections if self.spec.protocol == "lvis" else None)

    def _keep(
        self, items: Sequence[Item], answers: Sequence[Sequence[RegionPredictions]], limit: int | None = None
    ) -> None:
        for item, *parts in zip(items, *answers, strict=True):
            found = RegionPredictions.joined(parts)
            self._found[item.place].append(found if limit is None else best(found, limit))

    def finish(self) -> list[RegionPredictions]:
        """Each record's detections, the best first; fills the tallies."""
        images = self.tallies["images"] = Tally()
        images.keep(len(self._found) - len(self._lost))
        for place, (key, error) in sorted(self._lost.items()):
            images.drop(error.reason)
            self._found[place] = []
            self.notes.append(f"{key}: {error}")
        return [best(joined(parts), self.spec.limit(self.config)) for parts in self._found]
