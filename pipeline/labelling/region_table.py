"""A shard's answers as they come in, in any order, and the table they become."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.annotators.base import RegionPredictions
from pipeline.annotators.batches import Item
from pipeline.config import PseudoLabelConfig
from pipeline.data.caption_phrases import CaptionPhrases
from pipeline.data.images import ImageError
from pipeline.data.records import REGIONS
from pipeline.execution.reports import Tally
from pipeline.execution.worker import ShardJob
from pipeline.io.tars import TarProblems

_FLOATS = ("score", "token_mean", "token_min", "token_max", "centerness")


class ShardResult:
    """One shard on its way through a labelling process.

    ``sizes`` and ``found`` are by place of the sample in the shard. The reading thread, the decoding ones and the teacher's
    write to different fields, ``lost`` apart, which has a lock.
    """

    def __init__(self, job: ShardJob) -> None:
        self.job = job
        self.asked: dict[str, CaptionPhrases] = {}
        self.keys: dict[int, str] = {}
        self.problems = TarProblems()
        self.sizes: dict[int, tuple[int, int]] = {}
        self.beyond_limit: dict[int, int] = {}
        self.found: dict[int, list[RegionPredictions]] = {}
        self.error: BaseException | None = None
        self._lost: dict[int, ImageError] = {}
        self._lock = threading.Lock()

    def lose(self, place: int, error: ImageError) -> None:
        """An image that gives no answer, and why."""
        with self._lock:
            self._lost.setdefault(place, error)

    def answer(self, items: Sequence[Item], annotations: Sequence[RegionPredictions]) -> None:
        """The regions of a batch's questions."""
        for item, found in zip(items, annotations, strict=True):
            self.found.setdefault(item.place, []).append(found)

    def finish(self, config: PseudoLabelConfig) -> tuple[pa.Table, dict[str, Tally], list[str]]:
        """(rows of REGIONS, tallies of samples and phrases, notes on lost images). Every sample and phrase is counted once."""
        samples, phrases, notes = Tally(), Tally(), []
        for place, error in sorted(self._lost.items()):
            self.found.pop(place, None)
            samples.drop(error.reason)
            phrases.drop("image_lost", len(self.asked[self.keys[place]].rows))
            notes.append(f"{self.keys[place]}: {error}")
        seen = set(self.keys.values())
        for key, asked in self.asked.items():
            if key not in seen:
                samples.drop("not_in_shard")
                phrases.drop("image_lost", len(asked.rows))
        parts = []
        for place in sorted(set(self.keys) - set(self._lost)):
            asked = self.asked[self.keys[place]]
            beyond = self.beyond_limit.get(place, 0)
            phrases.drop("phrase_beyond_text_limit", beyond)
            if place not in self.found:
                samples.drop("phrase_beyond_text_limit")
                continue
            samples.keep()
            rows, phrase = image_rows(RegionPredictions.joined(self.found[place]), config.max_regions_per_phrase)
            with_region = len(np.unique(phrase))
            phrases.keep(with_region)
            phrases.drop("no_region", len(asked.rows) - beyond - with_region)
            if len(phrase):
                parts.append(_columns(self.keys[place], asked, self.sizes[place], phrase, rows))
        return _table(parts), {"samples": samples, "phrases": phrases}, notes


def image_rows(found: RegionPredictions, most: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(columns of an image's regions, phrase of each), by phrase and falling score, at most ``most`` a phrase."""
    order = np.lexsort((np.arange(len(found.score)), -found.score, found.phrase))
    phrase = found.phrase[order]
    first = np.concatenate([[True], phrase[1:] != phrase[:-1]]) if len(phrase) else np.zeros(0, bool)
    starts = np.maximum.accumulate(np.where(first, np.arange(len(phrase)), 0))
    rank = np.arange(len(phrase)) - starts
    stays = rank < most
    order, phrase = order[stays], phrase[stays]
    columns = {name: getattr(found, name)[order] for name in _FLOATS}
    columns |= dict(zip(("x1", "y1", "x2", "y2"), found.boxes[order].T, strict=True))
    columns["rank"] = rank[stays].astype(np.int16)
    return columns, phrase


def _columns(
    key: str, asked: CaptionPhrases, size: tuple[int, int], phrase: np.ndarray, rows: dict[str, np.ndarray]
) -> dict[str, np.ndarray | pa.Array]:
    spans = np.asarray(asked.spans, np.int32)
    n = len(phrase)
    return rows | {
        "key": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array([key])).cast(pa.string()),
        "phrase_row": np.asarray(asked.rows, np.int32)[phrase],
        "phrase": pa.array(asked.phrases).take(pa.array(phrase)),
        "start": spans[phrase, 0],
        "end": spans[phrase, 1],
        "height": np.full(n, size[0], np.int32),
        "width": np.full(n, size[1], np.int32),
    }


def _table(parts: Sequence[Mapping[str, np.ndarray | pa.Array]]) -> pa.Table:
    if not parts:
        return REGIONS.empty_table()
    columns = []
    for column in REGIONS:
        values = [part[column.name] for part in parts]
        if isinstance(values[0], np.ndarray):
            joined = np.concatenate(values)
            columns.append(pa.array(joined, column.type, mask=np.isnan(joined) if joined.dtype.kind == "f" else None))
        else:
            columns.append(pa.concat_arrays(values))
    return pa.Table.from_arrays(columns, schema=REGIONS)
