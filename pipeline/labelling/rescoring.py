"""rescore's worker: CLIP or SigLIP compares the crop of every stored region with its phrase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

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
from pipeline.execution.inference import check_losses, run_inference, timed
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.worker import ShardJob, WorkQueue
from pipeline.io.paths import join
from pipeline.io.tables import footer, read_table, write_table
from pipeline.io.tars import TarProblems, TarSample, read_tar
from pipeline.system.devices import limit_torch_threads

STAGE = "rescore"
REGIONS_AT_ONCE = 32
"""Images are decoded together up to so many regions: enough to be worth a thread's turn, few enough to be held."""


@dataclass(frozen=True)
class RescoreShards:
    """A worker (:data:`pipeline.execution.worker.Worker`): scores the queue's shards with one copy of the scorer.

    regions, out: folders or URLs. device: a torch device. decoders: decoding threads.
    threads: torch's own, on the CPU; None leaves them.
    """

    config: RescoreConfig
    regions: str
    scorer: str
    out: str
    device: str
    decoders: int
    threads: int | None = None

    def __call__(self, queue: WorkQueue) -> None:
        """Score until the queue has no more shards.

        Raises:
            InputError: no usable scorer. torch.AcceleratorError: the device is lost.
        """
        with timed(queue, "load"):
            limit_torch_threads(self.threads)
            scorer = load_region_text(self.scorer, self.config, self.device)
        run_inference(queue, iter(queue.take, None), partial(RescoringShard, self, scorer), self.decoders)


@dataclass
class _Image:
    """A sample with regions: their rows in the table; once decoded its crops and each region's, or why there are none.

    notes_before: notes on the shard when it was read.
    """

    sample: TarSample
    rows: np.ndarray
    notes_before: int
    crops: list[dict[str, Tensor]] = field(default_factory=list)
    crop_of: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    error: ImageError | None = None


@dataclass(frozen=True)
class _Batch:
    """Stacked crops; the row in the table of each of their regions, and its crop; images begun since the last batch."""

    crops: dict[str, Tensor]
    rows: np.ndarray
    crop_of: np.ndarray
    images: int


class RescoringShard:
    """A shard being rescored (:class:`pipeline.execution.inference.InferenceShard`)."""

    def __init__(self, worker: RescoreShards, scorer: RegionText, job: ShardJob) -> None:
        self._worker, self._scorer, self._job = worker, scorer, job
        self._path = join(worker.regions, f"{job.name}.parquet")
        self._table = table = read_table(self._path, REGIONS)
        self._boxes = np.stack([table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], 1).astype(np.float64)
        self._sizes = np.stack([table[name].to_numpy() for name in ("height", "width")], 1)
        phrases = table["phrase"].combine_chunks().dictionary_encode()
        self._texts, self._cut = scorer.tokenize(phrases.dictionary.to_pylist())
        self._text_of = phrases.indices.to_numpy()
        self._embedded: Tensor | None = None
        self._scores = np.full(len(table), np.nan, np.float32)
        self._unseen = _rows_of_keys(table)
        self._crops: list[dict[str, Tensor]] = []
        self._crop_rows: list[np.ndarray] = []
        self._images = 0
        self._problems = TarProblems()
        self._lost: list[tuple[int, str]] = []
        self._tallies = {"samples": Tally(), "scores": Tally()}

    def windows(self) -> Iterator[list[list[_Image]]]:
        """The samples with regions, some at a time."""
        images: list[_Image] = []
        for sample in read_tar(self._job.path, self._problems):
            rows = self._unseen.pop(sample.key, None)
            if rows is not None:
                images.append(_Image(sample, rows, len(self._problems.notes)))
            if sum(len(image.rows) for image in images) >= REGIONS_AT_ONCE:
                yield [images]
                images = []
        yield [images]

    def prepare(self, unit: list[_Image]) -> list[_Image]:
        """Decode the images and crop their regions."""
        for image in unit:
            try:
                decoded = _decode(image.sample, tuple(self._sizes[image.rows[0]]))
            except ImageError as error:
                image.error = error
            else:
                image.crops, image.crop_of = self._scorer.crops(decoded, self._boxes[image.rows])
        return unit

    def collate(self, ready: list[_Image] | None) -> Iterator[_Batch]:
        """Batches of ``batch_size`` crops in the shard's order, and a last one of fewer."""
        size = self._worker.config.batch_size
        for image in ready or ():
            if image.error is not None:
                self._lose(image.sample.key, image.rows, image.error.reason, str(image.error), image.notes_before)
                continue
            self._crops += image.crops
            self._crop_rows += [image.rows[image.crop_of == i] for i in range(len(image.crops))]
            self._images += 1
            self._tallies["samples"].keep()
            self._tallies["scores"].keep(len(image.rows))
            while len(self._crops) >= size:
                yield self._batch(size)
        if ready is None:
            if self._crops:
                yield self._batch(len(self._crops))
            for key, rows in self._unseen.items():
                note = "its regions are stored, but the shard does not hold it"
                self._lose(key, rows, "not_in_shard", note, len(self._problems.notes))

    def _batch(self, count: int) -> _Batch:
        """Take the first ``count`` crops."""
        crops, rows, images = self._crops[:count], self._crop_rows[:count], self._images
        del self._crops[:count], self._crop_rows[:count]
        self._images = 0
        stacked = {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}
        return _Batch(stacked, np.concatenate(rows), np.repeat(np.arange(count), [len(r) for r in rows]), images)

    def _lose(self, key: str, rows: np.ndarray, reason: str, note: str, notes_before: int) -> None:
        """Count an image that cannot be looked at: its regions stay, without a score."""
        self._tallies["samples"].drop(reason)
        self._tallies["scores"].drop("image_lost", len(rows))
        self._lost.append((notes_before, f"{key}: {note}"))

    def predict(self, batch: _Batch) -> int:
        """Score a batch's regions."""
        if self._embedded is None:
            self._embedded = self._scorer.embed_texts(self._texts)
        texts = self._embedded[self._text_of[batch.rows]]
        self._scores[batch.rows] = self._scorer.scores(batch.crops, batch.crop_of, texts)
        return batch.images

    def finish(self) -> ShardReport:
        """Write the regions with their scores.

        Raises:
            RunError: more than ``max_lost_share`` of the images are lost.
        """
        job, config, problems = self._job, self._worker.config, self._problems
        check_losses(job, "images", self._tallies["samples"], config.max_lost_share)
        for notes_before, note in reversed(self._lost):
            problems.notes.insert(notes_before, note)  # all notes in the shard's order
        name = f"{job.name}.parquet"
        column = pa.array(self._scores, pa.float32(), mask=np.isnan(self._scores))
        about = {
            "stage": STAGE,
            "fingerprint": job.fingerprint,
            "version": str(STORE_VERSION),
            "scorer": f"{self._scorer.name}@{self._scorer.revision}",
            "rescore": config.model_dump_json(),
        }
        table = self._table.append_column(RESCORED.field("region_text"), column)
        output = write_table(join(self._worker.out, name), table, RESCORED, footer(self._path) | about)
        numbers = {"phrases_cut": float(self._cut)}
        return job.report(STAGE, {name: output}, self._tallies, numbers=numbers, problems=problems)


def _rows_of_keys(table: pa.Table) -> dict[str, np.ndarray]:
    """Key of a sample -> rows of its regions."""
    keys = table["key"].combine_chunks().dictionary_encode()
    codes = keys.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    groups: Sequence[np.ndarray] = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
    return dict(zip(keys.dictionary.to_pylist(), groups, strict=True))


def _decode(sample: TarSample, size: tuple[int, int]) -> Image.Image:
    stored = image_of(sample)
    if stored is None:
        raise ImageError("no_image", "the shard holds no image for its regions")
    image = open_image(stored[1])
    if (image.height, image.width) != size:
        raise ImageError(
            "image_changed", f"{image.height} x {image.width} pixels, its regions were found in {size[0]} x {size[1]}"
        )
    return image
