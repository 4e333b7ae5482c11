"""Selection of a store's samples by phrase, score, size and kind of their boxes, in a chosen order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from pipeline.errors import InputError
from pipeline.evaluation.metrics import SIZES
from pipeline.execution.progress import Progress, Silent
from pipeline.execution.reports import StageReport
from pipeline.inspection.samples import SampleStore
from pipeline.io.strict_model import StrictModel, problem_lines

KINDS = ("kept", "ignored", "dropped", "gold", "right", "wrong", "missed")
DTYPE = np.dtype([("sample", "<i4"), ("phrase", "<i4"), ("score", "<f8"), ("area", "<f8"), ("kinds", "u1")])
"""A box. kinds: a bit for each of KINDS."""


class Query(StrictModel):
    """Conditions that one box of a sample must meet together; the defaults are met by all samples.

    phrase: part of the phrase, in any case. least: lowest score; boxes without score meet it. size:
    of COCO's. kind: status or verdict; "": all but dropped boxes. sort: order of the samples, "" as
    in the shards. page: from 1.
    """

    phrase: str = ""
    least: float = Field(0.0, ge=0, le=1)
    size: Literal["", "small", "medium", "large"] = ""
    kind: Literal["", "all", "kept", "ignored", "dropped", "gold", "right", "wrong", "missed"] = ""
    sort: Literal["", "score", "low_score", "boxes"] = ""
    page: int = Field(1, ge=1)

    @classmethod
    def parse(cls, values: Mapping[str, str]) -> Query:
        """Parse a URL's parameters.

        Raises:
            InputError: an unknown parameter or an invalid value.
        """
        try:
            return cls.model_validate_strings(dict(values))
        except ValidationError as error:
            raise InputError(problem_lines(error, "address")[0]) from None

    @property
    def conditions(self) -> bool:
        """Whether some samples may not meet the query."""
        return bool(self.phrase or self.size or self.kind not in ("", "all") or self.least)


class SampleIndex:
    """Phrases, scores, areas and kinds of all boxes of a store: 25 bytes a box, and the phrases.

    Raises:
        InputError: a shard cannot be read.
    """

    def __init__(self, store: SampleStore, progress: Progress | None = None) -> None:
        progress, phrases = progress or Silent(), dict[str, int]()
        columns: list[tuple[int, int, float, float, int]] = []
        parts, counts = list[np.ndarray](), list[int]()
        progress.begin("index", len(store.shards))
        for shard in range(len(store.shards)):
            samples = store.samples(shard)
            for row, sample in enumerate(samples, sum(counts)):
                for box in sample.boxes:
                    code = phrases.setdefault(box.phrase.lower(), len(phrases))
                    score = np.nan if box.score is None else box.score
                    kinds = sum(1 << KINDS.index(kind) for kind in box.kinds)
                    columns.append((row, code, score, box.area, kinds))
            counts.append(len(samples))
            parts.append(np.array(columns, DTYPE))
            columns.clear()
            progress.advance(1, "shards")
        progress.end(StageReport(stage="index"))
        self._starts = np.cumsum([0, *counts])
        self._boxes = np.concatenate([np.zeros(0, DTYPE), *parts])
        self._phrases = list(phrases)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, number: int) -> tuple[int, int]:
        """(shard, row) of a sample."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, number - int(self._starts[shard])

    def select(self, query: Query) -> np.ndarray:
        """(n,) numbers of the samples that meet a query, in its order; equal ones as in the shards."""
        boxes = self._boxes
        met = np.ones(len(boxes), bool)
        if query.phrase:
            text = query.phrase.lower()
            met &= np.array([text in phrase for phrase in self._phrases], bool)[boxes["phrase"]]
        met &= ~(boxes["score"] < query.least)
        if query.size:
            low, high = SIZES[query.size]
            met &= (boxes["area"] >= low) & (boxes["area"] < high)
        if query.kind != "all":
            met &= ((boxes["kinds"] & (1 << KINDS.index(query.kind or "dropped"))) > 0) == bool(query.kind)
        boxes = boxes[met]
        count = np.bincount(boxes["sample"], minlength=len(self))
        chosen = np.flatnonzero(count) if query.conditions else np.arange(len(self))
        if not query.sort:
            return chosen
        if query.sort == "boxes":
            rank = -count.astype(np.float64)
        else:
            sign = -1.0 if query.sort == "score" else 1.0
            rank = np.full(len(self), np.inf)
            scored = boxes[~np.isnan(boxes["score"])]
            np.minimum.at(rank, scored["sample"], sign * scored["score"])
        return chosen[np.argsort(rank[chosen], kind="stable")]
