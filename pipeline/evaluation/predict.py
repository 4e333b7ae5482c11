"""The worker of evaluate: a model's predictions on shards of records, by the labelling annotator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.annotators import batches
from pipeline.annotators.base import Annotator, Batch, RegionPredictions, each_query, load_annotator, start
from pipeline.annotators.batches import Item
from pipeline.config import EvaluateConfig, PseudoLabelConfig
from pipeline.data.images import ImageError, image_size
from pipeline.data.training_shards import ShardSet
from pipeline.evaluation.predictions import PREDICTIONS, predictions_table
from pipeline.evaluation.protocols import (
    CAPTION_PROTOCOLS,
    SetSpec,
    best,
    class_chunks,
    joined,
    named_phrases,
    own_phrases,
)
from pipeline.execution.inference import run_inference, timed
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.worker import ShardJob, WorkQueue
from pipeline.io.paths import join
from pipeline.io.tables import write_table
from pipeline.system.devices import is_device_lost, limit_torch_threads

STAGE = "evaluate"
VERSION = 3  # 2: predictions beside the metrics, a table per shard; 3: GLIP's boxes end behind their last pixel
FLICKR_VERSION = 4  # of that protocol: every span is a phrase, not the stretch from a region's first to its last
WINDOW = 512
"""Images of a shard that are sorted by shape together; their bytes are held in memory."""
Ready = tuple[list[Item], list[Batch]]
"""Queries, their decoded images, and the first query collated (none if all images are broken)."""


def version_of(spec: SetSpec) -> int:
    """Version of a set's predictions."""
    return FLICKR_VERSION if spec.protocol == "flickr" else VERSION


@dataclass(frozen=True)
class DetectShards:
    """Worker (:data:`pipeline.execution.worker.Worker`) that predicts shards with one copy of the model.

    specs: the set of each job, by the job's name. out: folder or URL. Other fields as of
    :class:`pipeline.execution.inference.InferenceWorker`.
    """

    config: EvaluateConfig
    model: str
    specs: Mapping[str, SetSpec]
    out: str
    device: str
    decoders: int
    threads: int | None

    def __call__(self, queue: WorkQueue) -> None:
        """Predict until the queue is empty; reload the model for shards that need other settings.

        Raises:
            torch.AcceleratorError: the device is lost; the process must end.
        """
        every = iter(queue.take, None)
        for settings, jobs in itertools.groupby(every, lambda job: self.specs[job.name].label_config(self.config)):
            self._run(queue, settings, jobs)

    def _run(self, queue: WorkQueue, settings: PseudoLabelConfig, jobs: Iterator[ShardJob]) -> None:
        try:
            with timed(queue, "load"):
                limit_torch_threads(self.threads)
                annotator = load_annotator(self.model, settings, self.device)
        except Exception as error:
            for job in jobs:
                queue.failed(job, error)
                if is_device_lost(error):
                    raise
        else:
            run_inference(queue, jobs, partial(DetectionShard, self, annotator), self.decoders)


@dataclass(frozen=True)
class _Queries:
    """One query about each of some images, collated.

    ends_chunk: whether it is the last query of a chunk of class names. done: number of images whose
    last query this is.
    """

    items: list[Item]
    inputs: Batch
    ends_chunk: bool = True
    done: int = 0


class DetectionShard:
    """A shard being evaluated (:class:`pipeline.execution.inference.InferenceShard`)."""

    def __init__(self, worker: DetectShards, annotator: Annotator, job: ShardJob) -> None:
        self._worker, self._annotator, self._job = worker, annotator, job
        self._spec = spec = worker.specs[job.name]
        self._records = ShardSet([job.path])
        chunks = [] if spec.own_phrases else class_chunks(spec, annotator, worker.config)
        self._class_queries = [(query, query is chunk[-1]) for chunk in chunks for query in chunk]
        self._predictions: list[list[RegionPredictions]] = [[] for _ in range(self._records.counts[0])]
        self._chunk: list[Sequence[RegionPredictions | ImageError]] = []
        self._lost: dict[int, tuple[str, ImageError]] = {}  # images without predictions: their gold counts as missed
        self._phrases = Tally()

    def windows(self) -> Iterator[list[list[Item]]]:
        """The batches of some images at a time.

        Of class names only the first query is planned: all have about the same length.
        """
        items: list[Item] = []
        for row in range(len(self._predictions)):
            record, data = self._records.record(0, row), self._records.image(0, row)
            try:
                size = image_size(data)
            except ImageError as error:
                self._lost[row] = (record.key, error)
                continue
            if self._spec.protocol == "cgf1":
                names = own_phrases(record)
                queries = self._annotator.class_queries(names) if names else []
            elif self._spec.own_phrases:
                spans = [n.span for n in named_phrases(record, self._spec.protocol)]
                queries, missing = self._annotator.queries(record.caption or "", spans)
                self._phrases.keep(len(spans) - len(missing))
                self._phrases.drop("phrase_beyond_text_limit", len(missing))
                queries = queries if spans else []
            else:
                queries = [query for query, _ in self._class_queries[:1]]
            shape = self._annotator.shape(size[1], size[0])
            items += [Item(row, record.key, data, size, shape, q) for q in queries]
            if (row + 1) % WINDOW == 0:
                yield self._batches(items)
                items = []
        yield self._batches(items)

    def _batches(self, items: list[Item]) -> list[list[Item]]:
        shapes = getattr(self._annotator, "shapes", None)
        return list(batches.batches(items, self._worker.config.batch_size, shapes))

    def prepare(self, unit: list[Item]) -> Ready:
        """Decode a batch's images and collate the first query about them, unless all are broken."""
        items, images = batches.decode(
            self._annotator, unit, lambda item, error: self._lost.setdefault(item.index, (item.key, error))
        )
        first = [self._annotator.collate(images, [item.query for item in items])] if items else []
        return items, first

    def collate(self, ready: Ready | None) -> Iterator[_Queries]:
        """Collate a caption's query about each image, or the queries of all class names in turn.

        A query is collated while the model predicts the one before.
        """
        if ready is None or not ready[0]:
            return
        items, (first,) = ready
        queries, ends = zip(*self._class_queries, strict=True) if self._class_queries else ((), (True,))
        for i, inputs in enumerate(each_query(self._annotator, first, queries)):
            yield _Queries(items, inputs, ends[i], len(items) if i == len(ends) - 1 else 0)

    def predict(self, batch: _Queries) -> Callable[[], int]:
        """Begin a query; the function returned stores its predictions; of class names, the best of each chunk."""
        regions = start(self._annotator, batch.inputs)

        def store() -> int:
            self._chunk.append(regions())
            if batch.ends_chunk:
                limit = self._worker.config.chunk_detections if self._spec.protocol == "lvis" else None
                for item, *parts in zip(batch.items, *self._chunk, strict=True):
                    if lost := next((part for part in parts if isinstance(part, ImageError)), None):
                        self._lost.setdefault(item.index, (item.key, lost))
                        continue
                    joint = RegionPredictions.joined([part for part in parts if not isinstance(part, ImageError)])
                    self._predictions[item.index].append(joint if limit is None else best(joint, limit))
                self._chunk = []
            return batch.done

        return store

    def finish(self) -> ShardReport:
        """Write each record's predictions, the best first."""
        job, spec, notes = self._job, self._spec, []
        images = Tally()
        images.keep(len(self._predictions) - len(self._lost))
        for row, (key, error) in sorted(self._lost.items()):
            images.drop(error.reason)
            self._predictions[row] = []
            notes.append(f"{key}: {error}")
        rows = [best(joined(parts), spec.limit(self._worker.config)) for parts in self._predictions]
        name = f"{job.name}.parquet"
        footer = {
            "stage": STAGE, "fingerprint": job.fingerprint, "version": str(version_of(spec)), "protocol": spec.protocol,
            "model": f"{self._annotator.name}@{self._annotator.revision}",
        }  # fmt: skip
        output = write_table(join(self._worker.out, name), predictions_table(rows), PREDICTIONS, footer)
        tallies = ({"phrases": self._phrases} if spec.protocol in CAPTION_PROTOCOLS else {}) | {"images": images}
        return job.report(STAGE, {name: output}, tallies, notes=notes)
