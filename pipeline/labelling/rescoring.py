"""A shard of rescore for the inference loop: similarity of each region's crop and phrase by CLIP or SigLIP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.annotators.region_text import RegionText
from pipeline.config import RescoreConfig
from pipeline.data.crawl import image_of
from pipeline.data.images import ImageError, open_image
from pipeline.data.records import REGIONS, RESCORED, STORE_VERSION
from pipeline.execution.inference import check_losses
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.worker import ShardJob
from pipeline.io.paths import join
from pipeline.io.samples import read_samples
from pipeline.io.tables import footer, read_table, write_table
from pipeline.io.tars import TarProblems, TarSample

STAGE = "rescore"
REGIONS_AT_ONCE = 32
"""Number of regions whose images are decoded in one task, as a compromise of overhead and memory."""


@dataclass
class _Image:
    """A sample, the rows of its regions in the table, and the notes on the shard before it.

    Once decoded, its crops and the crop of each region, or the error.
    """

    sample: TarSample
    rows: np.ndarray
    notes_before: int
    crops: tuple[list[dict[str, Tensor]], np.ndarray] | ImageError | None = None


@dataclass(frozen=True)
class _Batch:
    """Stacked crops; for each of their regions its row in the table and its crop; images since the last batch."""

    crops: dict[str, Tensor]
    rows: np.ndarray
    crop_of: np.ndarray
    images: int


class RescoringShard:
    """A shard being rescored (:class:`pipeline.execution.inference.InferenceShard`). regions, out: folders or URLs."""

    def __init__(self, config: RescoreConfig, regions: str, out: str, scorer: RegionText, job: ShardJob) -> None:
        self._config, self._out, self._scorer, self._job = config, out, scorer, job
        self._path = join(regions, f"{job.name}.parquet")
        table = read_table(self._path, REGIONS, optional=None)
        self._table = table = table.select([name for name in table.column_names if name != "region_text"])
        self._boxes = np.stack([table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], 1).astype(np.float64)
        self._sizes = np.stack([table[name].to_numpy() for name in ("height", "width")], 1)
        phrases = table["phrase"].combine_chunks().dictionary_encode()
        self._texts, self._cut = scorer.tokenize(phrases.dictionary.to_pylist())
        self._text_of = phrases.indices.to_numpy()
        self._embedded: Tensor | None = None
        self._scores = np.full(len(table), np.nan, np.float32)
        self._unseen = _rows_of_keys(table)
        self._crops: list[tuple[dict[str, Tensor], np.ndarray]] = []
        self._images = 0
        self._problems = TarProblems()
        self._lost: list[tuple[int, str]] = []
        self._tallies = {"samples": Tally(), "scores": Tally()}

    def windows(self) -> Iterator[list[list[_Image]]]:
        """The samples that have regions, a few at a time."""
        images: list[_Image] = []
        for sample in read_samples(self._job.path, self._problems):
            if (rows := self._unseen.pop(sample.key, None)) is not None:
                images.append(_Image(sample, rows, len(self._problems.notes)))
                if sum(len(image.rows) for image in images) >= REGIONS_AT_ONCE:
                    yield [images]
                    images = []
        yield [images]

    def prepare(self, unit: list[_Image]) -> list[_Image]:
        """Decode the images and crop their regions."""
        for image in unit:
            try:
                image.crops = self._crop(image)
            except ImageError as error:
                image.crops = error
        return unit

    def _crop(self, image: _Image) -> tuple[list[dict[str, Tensor]], np.ndarray]:
        stored, (height, width) = image_of(image.sample), self._sizes[image.rows[0]]
        if stored is None:
            raise ImageError("no_image", "the shard holds no image for its regions")
        decoded = open_image(stored[1])
        if (decoded.height, decoded.width) != (height, width):
            size = f"{decoded.height} x {decoded.width} pixels"
            raise ImageError("image_changed", f"{size}, its regions were found in {height} x {width}")
        return self._scorer.crops(decoded, self._boxes[image.rows])

    def collate(self, ready: list[_Image] | None) -> Iterator[_Batch]:
        """Batches of ``batch_size`` crops in the shard's order, and a last one of fewer."""
        for image in ready or ():
            assert image.crops is not None
            if isinstance(image.crops, ImageError):
                self._lose(image.sample.key, image.rows, image.crops.reason, str(image.crops), image.notes_before)
                continue
            crops, crop_of = image.crops
            self._crops += [(crop, image.rows[crop_of == i]) for i, crop in enumerate(crops)]
            self._images += 1
            self._tallies["samples"].keep()
            self._tallies["scores"].keep(len(image.rows))
            while len(self._crops) >= self._config.batch_size:
                yield self._batch(self._config.batch_size)
        if ready is None:
            if self._crops:
                yield self._batch(len(self._crops))
            for key, rows in self._unseen.items():
                note = "its regions are stored, but the shard does not hold it"
                self._lose(key, rows, "not_in_shard", note, len(self._problems.notes))

    def _batch(self, count: int) -> _Batch:
        """Take the first ``count`` crops."""
        crops, rows = zip(*self._crops[:count], strict=True)
        stacked = {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}
        crop_of = np.repeat(np.arange(count), [len(r) for r in rows])
        batch = _Batch(stacked, np.concatenate(rows), crop_of, self._images)
        del self._crops[:count]
        self._images = 0
        return batch

    def _lose(self, key: str, rows: np.ndarray, reason: str, note: str, notes_before: int) -> None:
        """Count a lost image; its regions stay, without a score."""
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
        job, config, problems = self._job, self._config, self._problems
        check_losses(job, "images", self._tallies["samples"], config.max_lost_share)
        for notes_before, note in reversed(self._lost):
            problems.notes.insert(notes_before, note)  # among the tar's own, in the shard's order
        about = footer(self._table.schema) | {
            "stage": STAGE, "fingerprint": job.fingerprint, "version": str(STORE_VERSION),
            "scorer": f"{self._scorer.name}@{self._scorer.revision}", "rescore": config.model_dump_json(),
        }  # fmt: skip
        column = pa.array(self._scores, pa.float32(), mask=np.isnan(self._scores))
        table = self._table.append_column(RESCORED.field("region_text"), column)
        name, numbers = f"{job.name}.parquet", {"phrases_cut": float(self._cut)}
        others = [field for field in self._table.schema if field.name not in REGIONS.names]
        schema = pa.schema([*REGIONS, *others, RESCORED.field("region_text")])
        output = write_table(join(self._out, name), table, schema, about)
        return job.report(STAGE, {name: output}, self._tallies, numbers=numbers, problems=problems)


def _rows_of_keys(table: pa.Table) -> dict[str, np.ndarray]:
    """Key of a sample -> rows of its regions."""
    keys = table["key"].combine_chunks().dictionary_encode()
    codes = keys.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
    return dict(zip(keys.dictionary.to_pylist(), groups, strict=True))
