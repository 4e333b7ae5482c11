"""Collect a shard's regions, in any order, and make a table of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.annotators.base import RegionPredictions
from pipeline.annotators.batches import Item
from pipeline.config import PseudoLabelConfig
from pipeline.data.caption_phrases import CaptionPhrases
from pipeline.data.images import ImageError
from pipeline.data.records import MASK, NAMED_REGIONS, NUMBERED_REGIONS, REGIONS
from pipeline.execution.reports import Tally
from pipeline.filtering.nms import concatenated_ranges, run_lengths
from pipeline.io.tars import TarProblems

_FLOATS = ("score", "token_mean", "token_min", "token_max", "centerness")


class ShardResult:
    """A shard's samples, by their index in it: keys, sizes, regions and losses.

    The reading thread, the decoding ones and the teacher's write to different fields, apart from
    the losses, which have a lock. ``phrases``: those to label, by sample key; of all samples where they are
    class names. ``named``: whether they are; then the reader may add those of each sample, and ``unnamed`` counts,
    by reason, the samples without any.
    """

    def __init__(self, phrases: Mapping[str, CaptionPhrases] | CaptionPhrases, named: bool = False) -> None:
        self._of_all = phrases if isinstance(phrases, CaptionPhrases) else None
        self._named = named or self._of_all is not None
        self.unnamed = Counter[str]()
        self.phrases = {} if isinstance(phrases, CaptionPhrases) else dict(phrases)
        self.keys: dict[int, str] = {}
        self.problems = TarProblems()
        self.sizes: dict[int, tuple[int, int]] = {}
        self.beyond_limit: dict[int, int] = {}
        self._regions: dict[int, list[RegionPredictions]] = {}
        self._lost: dict[int, ImageError] = {}
        self._lock = threading.Lock()

    def phrases_of(self, key: str) -> CaptionPhrases | None:
        """The phrases of a sample of the shard; None if it has none."""
        return self.phrases.get(key) if self._of_all is None else self.phrases.setdefault(key, self._of_all)

    def lose(self, index: int, error: ImageError) -> None:
        """Record that a sample's image gives no regions, and why."""
        with self._lock:
            self._lost.setdefault(index, error)

    def add(self, items: Sequence[Item], predictions: Sequence[RegionPredictions | ImageError]) -> None:
        """Add the regions of a batch's queries, or their losses."""
        for item, regions in zip(items, predictions, strict=True):
            if isinstance(regions, ImageError):
                self.lose(item.index, regions)
            else:
                self._regions.setdefault(item.index, []).append(regions)

    def finish(self, config: PseudoLabelConfig) -> tuple[pa.Table, dict[str, Tally], list[str]]:
        """(rows of REGIONS, tallies of samples and phrases, notes on lost images).

        If the phrases have numbers, the rows are of NUMBERED_REGIONS; of class names, of NAMED_REGIONS; with
        ``masks``, MASK is added.
        Every sample and phrase is counted once.
        """
        samples, phrases, notes = Tally(), Tally(), []
        for index, error in sorted(self._lost.items()):
            samples.drop(error.reason)
            phrases.drop("image_lost", len(self.phrases[self.keys[index]].rows))
            notes.append(f"{self.keys[index]}: {error}")
        seen = set(self.keys.values())
        for key, of_image in self.phrases.items():
            if key not in seen:
                samples.drop("not_in_shard")
                phrases.drop("image_lost", len(of_image.rows))
        parts = []
        for index in sorted(set(self.keys) - set(self._lost)):
            of_image = self.phrases[self.keys[index]]
            beyond = self.beyond_limit.get(index, 0)
            phrases.drop("phrase_beyond_text_limit", beyond)
            if index not in self._regions:
                samples.drop("phrase_beyond_text_limit")
                continue
            samples.keep()
            rows, phrase = image_rows(RegionPredictions.joined(self._regions[index]), config.max_regions_per_phrase)
            with_region = len(np.unique(phrase))
            phrases.keep(with_region)
            phrases.drop("no_region", len(of_image.rows) - beyond - with_region)
            if len(phrase):
                parts.append(_columns(self.keys[index], of_image, self.sizes[index], phrase, rows))
        numbered = any(of_image.numbers is not None for of_image in self.phrases.values())
        schema = NAMED_REGIONS if self._named else NUMBERED_REGIONS if numbered else REGIONS
        schema = schema.append(MASK) if config.masks else schema
        return _table(parts, schema), {"samples": samples, "phrases": phrases}, notes


def image_rows(regions: RegionPredictions, most: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(columns of an image's regions, phrase of each), by phrase and falling score, at most ``most`` a phrase."""
    order = np.lexsort((np.arange(len(regions.score)), -regions.score, regions.phrase))
    phrase = regions.phrase[order]
    rank = concatenated_ranges(run_lengths(phrase)[1])
    kept = rank < most
    order, phrase = order[kept], phrase[kept]
    columns = {name: getattr(regions, name)[order] for name in _FLOATS}
    if regions.mask is not None:
        columns["mask"] = regions.mask[order]
    columns |= dict(zip(("x1", "y1", "x2", "y2"), regions.boxes[order].T, strict=True))
    columns["rank"] = rank[kept].astype(np.int16)
    return columns, phrase


def _columns(
    key: str, phrases: CaptionPhrases, size: tuple[int, int], phrase: np.ndarray, rows: dict[str, np.ndarray | pa.Array]
) -> dict[str, np.ndarray | pa.Array]:
    spans = np.asarray(phrases.spans, np.int32)
    n = len(phrase)
    if phrases.numbers is not None:
        rows = rows | {"number": pa.array(phrases.numbers, pa.int32()).take(pa.array(phrase))}
    if phrases.names is not None:
        rows = rows | {"name": pa.array(phrases.names).take(pa.array(phrase))}
    return rows | {
        "key": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array([key])).cast(pa.string()),
        "phrase_row": np.asarray(phrases.rows, np.int32)[phrase],
        "phrase": pa.array(phrases.phrases).take(pa.array(phrase)),
        "start": spans[phrase, 0],
        "end": spans[phrase, 1],
        "height": np.full(n, size[0], np.int32),
        "width": np.full(n, size[1], np.int32),
    }


def _table(parts: Sequence[Mapping[str, np.ndarray | pa.Array]], schema: pa.Schema) -> pa.Table:
    if not parts:
        return schema.empty_table()
    columns = []
    for column in schema:
        values = [part[column.name] for part in parts]
        if isinstance(values[0], np.ndarray):
            joined = np.concatenate(values)
            columns.append(pa.array(joined, column.type, mask=np.isnan(joined) if joined.dtype.kind == "f" else None))
        else:
            columns.append(pa.concat_arrays(values))
    return pa.Table.from_arrays(columns, schema=schema)
