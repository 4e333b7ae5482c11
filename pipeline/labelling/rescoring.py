"""A shard of rescore for the inference loop: regions get the scores of CLIP or SigLIP, or a verifier's answers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pipeline.annotators.region_text import RegionText
from pipeline.annotators.verifier_questions import Answer, ImageQuestions, Question, Verifier
from pipeline.config import RescoreConfig
from pipeline.data.crawl import image_of
from pipeline.data.images import ImageError, open_image
from pipeline.data.records import ANSWERED, MORE, REGIONS, RESCORED, STORE_VERSION
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


Item = TypeVar("Item")
Items = list[tuple[Item, np.ndarray]]
"""Inputs of a model and, for each, the rows of the table that it scores."""


@dataclass
class _Image(Generic[Item]):
    """A sample, the rows of its regions in the table, and the notes on the shard before it.

    items: once it is decoded, the model's inputs, or the error.
    """

    sample: TarSample
    rows: np.ndarray
    notes_before: int
    items: Items[Item] | ImageError = field(default_factory=list)


@dataclass(frozen=True)
class _Batch:
    """A model's inputs for some items, the rows of each in the table, and the images since the last batch."""

    inputs: Any
    rows: tuple[np.ndarray, ...]
    images: int


class RescoringShard(ABC, Generic[Item]):
    """A shard whose regions get columns of scores (:class:`pipeline.execution.inference.InferenceShard`).

    Args:
        columns: to write, in place of earlier ones. former: other columns that are no longer valid.
        regions, out: folders or URLs.
    """

    _must_remain: ClassVar = {"images": "samples"}
    """Units of which ``max_lost_share`` may be lost, and their tallies."""

    def __init__(
        self, config: RescoreConfig, regions: str, out: str, job: ShardJob, columns: Sequence[pa.Field],
        batch_size: int, former: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._config, self._out, self._job, self._batch_size = config, out, job, batch_size
        self._columns, replaced = columns, {*former, *(column.name for column in columns)}
        self._path = join(regions, f"{job.name}.parquet")
        table = read_table(self._path, REGIONS, optional=None)
        self._table = table = table.select([name for name in table.column_names if name not in replaced])
        self._boxes = np.stack([table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], 1).astype(np.float64)
        self._sizes = np.stack([table[name].to_numpy() for name in ("height", "width")], 1)
        self._scores = {column.name: np.full(len(table), np.nan, np.float32) for column in columns}
        self._unseen = _rows_of_keys(table)
        self._pending: Items[Item] = []
        self._images = 0
        self._problems = TarProblems()
        self._lost: list[tuple[int, str]] = []
        self._tallies = {"samples": Tally(), "scores": Tally()}
        self._numbers: dict[str, float] = {}

    @abstractmethod
    def _items(self, image: Image.Image, rows: np.ndarray) -> Items[Item]:
        """The model's inputs for the regions of an image, RGB. Called from several threads."""

    @abstractmethod
    def _inputs(self, items: Sequence[Item]) -> Any:
        """The model's inputs for a batch."""

    @abstractmethod
    def predict(self, batch: _Batch) -> int:
        """Score a batch's regions."""

    @abstractmethod
    def _about(self) -> dict[str, str]:
        """The model and its settings, for the footer."""

    def windows(self) -> Iterator[list[list[_Image[Item]]]]:
        """The samples that have regions, a few at a time."""
        images: list[_Image[Item]] = []
        for sample in read_samples(self._job.path, self._problems):
            if (rows := self._unseen.pop(sample.key, None)) is not None:
                images.append(_Image(sample, rows, len(self._problems.notes)))
                if sum(len(image.rows) for image in images) >= REGIONS_AT_ONCE:
                    yield [images]
                    images = []
        yield [images]

    def prepare(self, unit: list[_Image[Item]]) -> list[_Image[Item]]:
        """Decode the images and make the model's inputs for their regions."""
        for image in unit:
            try:
                image.items = self._items(self._decode(image), image.rows)
            except ImageError as error:
                image.items = error
        return unit

    def _decode(self, image: _Image[Item]) -> Image.Image:
        stored, (height, width) = image_of(image.sample), self._sizes[image.rows[0]]
        if stored is None:
            raise ImageError("no_image", "the shard holds no image for its regions")
        decoded = open_image(stored[1])
        if (decoded.height, decoded.width) != (height, width):
            size = f"{decoded.height} x {decoded.width} pixels"
            raise ImageError("image_changed", f"{size}, its regions were found in {height} x {width}")
        return decoded

    def collate(self, ready: list[_Image[Item]] | None) -> Iterator[_Batch]:
        """Full batches in the shard's order, and a last one of fewer items."""
        for image in ready or ():
            if isinstance(image.items, ImageError):
                self._lose(image.sample.key, image.rows, image.items.reason, str(image.items), image.notes_before)
                continue
            self._pending += image.items
            self._images += 1
            self._tallies["samples"].keep()
            while len(self._pending) >= self._batch_size:
                yield self._batch(self._batch_size)
        if ready is None:
            if self._pending:
                yield self._batch(len(self._pending))
            for key, rows in self._unseen.items():
                note = "its regions are stored, but the shard does not hold it"
                self._lose(key, rows, "not_in_shard", note, len(self._problems.notes))

    def _batch(self, count: int) -> _Batch:
        """Take the first ``count`` items."""
        items, rows = zip(*self._pending[:count], strict=True)
        batch = _Batch(self._inputs(items), rows, self._images)
        del self._pending[:count]
        self._images = 0
        return batch

    def _lose(self, key: str, rows: np.ndarray, reason: str, note: str, notes_before: int) -> None:
        """Count a lost image; its regions stay, without a score."""
        self._tallies["samples"].drop(reason)
        self._tallies["scores"].drop("image_lost", len(rows))
        self._lost.append((notes_before, f"{key}: {note}"))

    def finish(self) -> ShardReport:
        """Write the regions with their scores.

        Raises:
            RunError: more than ``max_lost_share`` of the images are lost.
        """
        job, problems, scores = self._job, self._problems, self._tallies["scores"]
        scores.keep(len(self._table) - sum(scores.dropped.values()))
        for unit, tally in self._must_remain.items():
            check_losses(job, unit, self._tallies[tally], self._config.max_lost_share)
        for notes_before, note in reversed(self._lost):
            problems.notes.insert(notes_before, note)  # among the tar's own, in the shard's order
        about = footer(self._table.schema) | {
            "stage": STAGE, "fingerprint": job.fingerprint, "version": str(STORE_VERSION), **self._about(),
        }  # fmt: skip
        table = self._table
        others = [column for column in table.schema if column.name not in REGIONS.names]
        for column in self._columns:
            values = self._scores[column.name]
            table = table.append_column(column, pa.array(values, pa.float32(), mask=np.isnan(values)))
        name = f"{job.name}.parquet"
        output = write_table(join(self._out, name), table, pa.schema([*REGIONS, *others, *self._columns]), about)
        return job.report(STAGE, {name: output}, self._tallies, numbers=self._numbers, problems=problems)


class RegionTextShard(RescoringShard[dict[str, Tensor]]):
    """Similarity of each region's crop and phrase by CLIP or SigLIP. An item is a crop, of one or more regions."""

    def __init__(self, config: RescoreConfig, regions: str, out: str, scorer: RegionText, job: ShardJob) -> None:
        super().__init__(config, regions, out, job, [RESCORED.field("region_text")], config.batch_size)
        self._scorer = scorer
        phrases = self._table["phrase"].combine_chunks().dictionary_encode()
        self._texts, cut = scorer.tokenize(phrases.dictionary.to_pylist())
        self._text_of = phrases.indices.to_numpy()
        self._embedded: Tensor | None = None
        self._numbers["phrases_cut"] = float(cut)

    def _items(self, image: Image.Image, rows: np.ndarray) -> Items[dict[str, Tensor]]:
        crops, crop_of = self._scorer.crops(image, self._boxes[rows])
        return [(crop, rows[crop_of == i]) for i, crop in enumerate(crops)]

    def _inputs(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([crop[name] for crop in items]) for name in items[0]}

    def predict(self, batch: _Batch) -> int:
        """Score a batch's regions."""
        if self._embedded is None:
            self._embedded = self._scorer.embed_texts(self._texts)
        rows, crop_of = np.concatenate(batch.rows), np.repeat(np.arange(len(batch.rows)), list(map(len, batch.rows)))
        texts = self._embedded[self._text_of[rows]]
        self._scores["region_text"][rows] = self._scorer.scores(batch.inputs, crop_of, texts)
        return batch.images

    def _about(self) -> dict[str, str]:
        return {
            "scorer": f"{self._scorer.name}@{self._scorer.revision}",
            "rescore": self._config.model_dump_json(exclude={"verifier"}),
        }


class VerifierShard(RescoringShard[tuple[str, Question]]):
    """A vision-language model's answers. An item is a question, with the column that it is for."""

    _must_remain: ClassVar = {"images": "samples", "regions": "scores"}

    def __init__(self, config: RescoreConfig, regions: str, out: str, verifier: Verifier, job: ShardJob) -> None:
        questions = config.verifier
        columns = [ANSWERED.field("verifier"), *([MORE] if questions.exhaustive else [])]
        super().__init__(config, regions, out, job, columns, questions.batch_size, former=[MORE.name])
        self._verifier, self._questions = verifier, questions
        self._score, self._phrase = self._table["score"].to_numpy(), self._table["phrase"].to_pylist()
        self._phrase_row = self._table["phrase_row"].to_numpy()
        self._numbers["answers_unclear"] = 0.0
        self._unanswered: list[tuple[str, np.ndarray, ImageError]] = []
        if questions.exhaustive:
            self._tallies["phrases"] = Tally()

    def _items(self, image: Image.Image, rows: np.ndarray) -> Items[tuple[str, Question]]:
        about = ImageQuestions(image, self._questions)
        items: Items[tuple[str, Question]] = [
            (("verifier", about.of_region(self._boxes[row], self._phrase[row])), np.array([row])) for row in rows
        ]
        for phrase in np.unique(self._phrase_row[rows]) if self._questions.exhaustive else ():
            of_phrase = rows[self._phrase_row[rows] == phrase]
            drawn = of_phrase[self._score[of_phrase] > self._questions.drawn_above]
            drawn = drawn if len(drawn) else of_phrase[[np.argmax(self._score[of_phrase])]]
            items.append((("more", about.of_more(self._boxes[drawn], self._phrase[of_phrase[0]])), of_phrase))
        return items

    def _inputs(self, items: Sequence[tuple[str, Question]]) -> tuple[list[str], Any]:
        return [column for column, _ in items], self._verifier.collate([question for _, question in items])

    def predict(self, batch: _Batch) -> int:
        """Store the answers to a batch's questions."""
        columns, inputs = batch.inputs
        for column, rows, answer in zip(columns, batch.rows, self._verifier.predict(inputs), strict=True):
            if isinstance(answer, Answer) and np.isnan(sum(answer)):
                answer = ImageError("answer_malformed", "its probability is not a number")
            if isinstance(answer, ImageError):
                self._unanswered.append((column, rows, answer))
                continue
            self._scores[column][rows] = answer.score
            self._numbers["answers_unclear"] += not answer.clear
            if column == "more":
                self._tallies["phrases"].keep()
        return batch.images

    def _lose(self, key: str, rows: np.ndarray, reason: str, note: str, notes_before: int) -> None:
        super()._lose(key, rows, reason, note, notes_before)
        if self._questions.exhaustive:
            self._tallies["phrases"].drop("image_lost", len(np.unique(self._phrase_row[rows])))

    def finish(self) -> ShardReport:
        """Write the regions with their scores.

        Raises:
            RunError: more than ``max_lost_share`` of the images, or of the regions, are lost.
        """
        for column, _, error in self._unanswered:
            self._tallies["scores" if column == "verifier" else "phrases"].drop(error.reason)
        if self._unanswered:
            _, rows, first = self._unanswered[0]
            key, phrase = self._table["key"][int(rows[0])].as_py(), self._phrase[rows[0]]
            note = f"{len(self._unanswered)} questions without an answer; the first, of {phrase!r}: {first}"
            self._problems.notes.append(f"{key}: {note}")
        return super().finish()

    def _about(self) -> dict[str, str]:
        verifier, tokens = self._verifier, self._verifier.tokens
        return {
            "verifier": f"{verifier.name}@{verifier.revision}", "verifier_config": self._questions.model_dump_json(),
            **({} if tokens is None else {"verifier_tokens": json.dumps(tokens)}),
        }  # fmt: skip


def _rows_of_keys(table: pa.Table) -> dict[str, np.ndarray]:
    """Key of a sample -> rows of its regions."""
    keys = table["key"].combine_chunks().dictionary_encode()
    codes = keys.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
    return dict(zip(keys.dictionary.to_pylist(), groups, strict=True))
