"""Labels or regions with captions, crawl images, dropped regions and gold boxes, as samples."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.caption_phrases import CaptionPhrases, read_caption_phrases
from pipeline.data.crawl import image_of
from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.records import REGIONS, Span
from pipeline.data.shard_index import ByteRange, member_ranges
from pipeline.errors import InputError
from pipeline.filtering.gold import GoldMatcher, by_class, gold_tables, read_gold
from pipeline.filtering.store import BOX
from pipeline.inspection.samples import Sample, ShownBox, Status, Verdict
from pipeline.io.files import read_range
from pipeline.io.paths import join, stem
from pipeline.io.samples import find_sample
from pipeline.io.tables import read_table
from pipeline.io.tars import split_name
from pipeline.io.virtual_shards import virtual_shard

STATUSES: Mapping[str, Status] = {"keep": "kept", "ignore": "ignored", "dropped": "dropped"}
IMAGES = frozenset(IMAGE_EXTENSIONS)
REGION = ("key", "phrase_row", "rank")
"""Columns that identify a region of a shard."""
SHOWN = ("key", "phrase", "start", "end", *BOX, "score", "height", "width", "status")


class CrawlImages:
    """Images of crawl shards by shard name and key; a shard's headers are read once."""

    def __init__(self, shards: Sequence[str]) -> None:
        self._paths = {stem(path): path for path in shards}
        self._places = lru_cache(maxsize=16)(self._scan)

    def read(self, shard: str, key: str) -> bytes:
        """Encoded image.

        Raises:
            InputError: the crawl has no such shard or image.
        """
        if shard not in self._paths:
            raise InputError(f"{shard}/{key}: drawing it needs its image (--shards)")
        path = self._paths[shard]
        if (place := self._places(path).get(key)) is not None:
            return read_range(path, *place)
        sample = find_sample(path, key)  # compressed and virtual shards have no places
        if sample is not None and (image := image_of(sample)) is not None:
            return image[1]
        raise InputError(f"{path}: found no image {key}; want the crawl that was labelled")

    @staticmethod
    def _scan(path: str) -> dict[str, ByteRange]:
        """Byte range of each image; of a damaged shard those before the damage."""
        found: dict[str, dict[str, ByteRange]] = {}
        if virtual_shard(path) is not None:
            return {}
        with suppress(tarfile.TarError, EOFError):
            for name, content in member_ranges(path):
                if (parts := split_name(name.removeprefix("./"))) is not None:
                    found.setdefault(parts[0], {}).setdefault(parts[1].lower(), content)
        return {k: next(f[e] for e in IMAGE_EXTENSIONS if e in f) for k, f in found.items() if f.keys() & IMAGES}


class LabelStore:
    """Labels or regions (:class:`pipeline.inspection.samples.SampleStore`).

    Labels are compared with gold one to one, as :func:`pipeline.evaluation.label_quality.label_quality`
    does; those of a phrase without gold have no verdict. A dropped region is right if it would be
    with all regions kept.

    Args:
        files: tables of filter-boxes or pseudo-label.
        phrases: folder of parse-phrases, for captions. crawl: shards, for images.
        regions: folder of the regions that filter-boxes read, to show the dropped ones.
        gold: folder of gold tables. iou: minimum IoU of a right label.

    Raises:
        InputError: a file is missing or is not of its stage.
    """

    least = 0.0

    def __init__(
        self,
        files: Sequence[str],
        *,
        phrases: str | None = None,
        crawl: Sequence[str] = (),
        regions: str | None = None,
        gold: str | None = None,
        iou: float = 0.5,
    ) -> None:
        self.shards = [stem(path) for path in files]
        self._files, self._phrases, self._regions, self._iou = list(files), phrases, regions, iou
        self._gold = gold_tables(gold) if gold else {}
        self._images = CrawlImages(crawl)
        self.samples = lru_cache(maxsize=4)(self._samples)

    def image(self, shard: int, row: int) -> bytes:
        """Encoded image of a sample, from the crawl."""
        return self._images.read(self.shards[shard], self.samples(shard)[row].key)

    def find(self, shard: str, key: str) -> tuple[int, int] | None:
        """(shard, row) of a sample; None if there is none."""
        number = self.shards.index(shard)
        return next(((number, row) for row, s in enumerate(self.samples(number)) if s.key == key), None)

    def _samples(self, shard: int) -> list[Sample]:
        name, table = self.shards[shard], _read(self._files[shard], "keep")
        if self._regions is not None:
            table = _with_dropped(table, _read(join(self._regions, f"{name}.parquet"), "dropped"))
        phrases = None if "name" in table.column_names else self._phrases
        captions = read_caption_phrases(join(phrases, f"{name}.parquet")) if phrases else {}
        rows = table.select(SHOWN).to_pylist()
        verdicts, gold = self._compare(name, table)
        boxes: dict[str, list[ShownBox]] = {key: [] for key in [*captions, *(r["key"] for r in rows)]}
        sizes = {row["key"]: (row["height"], row["width"]) for row in rows}
        for row, verdict in zip(rows, verdicts, strict=True):
            status = STATUSES[row["status"]]
            spans = _span(captions.get(row["key"]), row["start"], row["end"])
            corners = (row["x1"], row["y1"], row["x2"], row["y2"])
            score = None if math.isnan(row["score"]) else row["score"]
            boxes[row["key"]].append(ShownBox(corners, row["phrase"], score, spans, status, verdict))
        for key, box in gold:
            if key in sizes:
                spans = tuple(span for start, end in box.spans for span in _span(captions.get(key), start, end))
                boxes[key].append(replace(box, spans=spans))
        return [
            Sample(
                name, key, sizes.get(key, (0, 0)), captions[key].caption if key in captions else None, tuple(of_key),
                _uncertain(captions.get(key), of_key),
            )
            for key, of_key in boxes.items()
        ]  # fmt: skip

    def _compare(self, name: str, table: pa.Table) -> tuple[list[Verdict], list[tuple[str, ShownBox]]]:
        """(verdict of each row, (key, box) of the shard's gold boxes)."""
        if name not in self._gold:
            return [""] * table.num_rows, []
        gold = read_gold(self._gold[name])
        keys = table["key"].combine_chunks().dictionary_encode()
        numbers = {c: table[c].to_numpy() for c in ("start", "end", "score", *BOX)}
        boxes = np.stack([numbers[c] for c in BOX], 1)
        if "name" in table.column_names:
            names = pc.utf8_lower(table["name"]).combine_chunks().dictionary_encode()
            gold, numbers["start"] = by_class(gold, names.dictionary), names.indices.to_numpy().astype(np.int64)
            numbers["end"] = numbers["start"] + 1
        matcher = GoldMatcher(
            gold, keys.indices.to_numpy(), keys.dictionary, numbers["start"], numbers["end"], boxes, numbers["score"],
            self._iou,
        )  # fmt: skip
        status = np.array(table["status"].to_pylist(), object)
        taken = matcher.match(status == "keep")
        right = np.where(status == "dropped", matcher.match(status != "ignore"), taken) >= 0
        judged = (matcher.phrase >= 0) & (status != "ignore")
        verdicts: list[Verdict] = [("right" if r else "wrong") if j else "" for r, j in zip(right, judged, strict=True)]
        found = np.zeros(len(gold), bool)
        found[taken[taken >= 0]] = True
        rows = zip(
            gold.keys.to_pylist(), gold.phrases.to_pylist(), gold.start.tolist(), gold.end.tolist(),
            gold.boxes.tolist(), found, strict=True,
        )  # fmt: skip
        return verdicts, [
            (key, ShownBox(tuple(box), phrase, None, ((start, end),), "gold", "" if ok else "missed"))
            for key, phrase, start, end, box, ok in rows
        ]


def _read(path: str, status: str) -> pa.Table:
    """Regions with their status; ``status`` is that of pseudo-label's, which have none.

    Regions of class names have them as ``phrase`` too; those of uncertain ones are shown as ignored.
    """
    table = read_table(path, REGIONS, optional=["status", "name"])
    statuses = pa.array([status] * table.num_rows, pa.string())
    if "status" in table.column_names:
        statuses = table["status"].cast(pa.string())
        statuses = pc.if_else(pc.equal(statuses, "uncertain"), "ignore", statuses)
        table = table.drop_columns("status")
    if "name" in table.column_names:
        table = table.set_column(table.column_names.index("phrase"), REGIONS.field("phrase"), table["name"])
    return table.append_column("status", statuses)


def _with_dropped(labels: pa.Table, regions: pa.Table) -> pa.Table:
    """Labels, and after them the regions that they do not have."""
    known = set(zip(*(labels[c].to_pylist() for c in REGION), strict=True))
    dropped = [row not in known for row in zip(*(regions[c].to_pylist() for c in REGION), strict=True)]
    rest = regions.filter(pa.array(dropped, pa.bool_()))
    return pa.concat_tables([table.replace_schema_metadata(None) for table in (labels, rest)])


def _span(phrases: CaptionPhrases | None, start: int, end: int) -> tuple[Span, ...]:
    """The span of a phrase, if it is inside the caption."""
    inside = phrases is not None and 0 <= start < end <= len(phrases.caption)
    return ((start, end),) if inside else ()


def _uncertain(phrases: CaptionPhrases | None, boxes: Sequence[ShownBox]) -> tuple[Span, ...]:
    """Spans of phrases without a kept box."""
    sure = {span for box in boxes if box.status == "kept" for span in box.spans}
    return tuple(span for span in phrases.spans if span not in sure) if phrases else ()
