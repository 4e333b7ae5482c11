"""What every target of an export is: it takes records one by one and keeps none; what it cannot carry is counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pipeline.data.records import Box, DatasetCard, GroundingRecord, Region
from pipeline.execution.reports import Tally
from pipeline.readers.base import phrase_of
from pipeline.writers.atomic_files import Sink
from pipeline.writers.unique_keys import Names

Numbers = Counter[str]
ClassNames = Literal["phrase", "root"]


@dataclass(frozen=True)
class Item:
    """A record on its way out. file: its image, below the export's folder, where nothing else is called so."""

    record: GroundingRecord
    file: str


@dataclass
class ExportContext:
    """What a target works with: where its files go, what the sets are, and where it counts.

    numbers: ``lost_X``: so many X are not in the output; ``extra_X``: they are, in a field that the format's own
    readers pass over and that ingest takes back.
    """

    sink: Sink
    names: Names
    cards: Mapping[str, DatasetCard] = field(default_factory=dict)
    class_names: ClassNames = "phrase"
    samples: Tally = field(default_factory=Tally)
    regions: Tally = field(default_factory=Tally)
    numbers: Numbers = field(default_factory=Counter)


class Target(Protocol):
    """A format in the making. Files that it opens in the context's sink appear when the stage commits them, together."""

    folder: str
    """Where its images go, below the export's folder."""
    takes_images: bool
    """It puts the images into files of its own; no files of them are written."""

    def add(self, item: Item, image: bytes | None) -> None:
        """Write a record; ``image`` is encoded, and given only to a target that takes images."""
        ...

    def finish(self) -> None:
        """Write what can be known at the end only."""
        ...

    def hints(self, out: str) -> list[str]:
        """How to read what was written, a line each."""
        ...


def json_bytes(value: Any) -> bytes:
    """One line of compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def xywh(box: Box) -> dict[str, list[float]]:
    """COCO's ``bbox``; with ``xyxy`` beside it where x + w or y + h would not be the corner again to the last bit."""
    x1, y1, x2, y2 = box
    w, h = _length(x1, x2), _length(y1, y2)
    return {"bbox": [x1, y1, w, h], **({} if (x1 + w, y1 + h) == (x2, y2) else {"xyxy": [x1, y1, x2, y2]})}


def _length(start: float, end: float) -> float:
    """The shortest w with start + w == end; the plain difference if there is none."""
    length = end - start
    return next((w for d in (2, 4, 8) if start + (w := round(length, d)) == end), length)


def origin(region: Region) -> dict[str, Any]:
    """Who found a box and how sure it was, as fields that the formats' own readers pass over."""
    found = {"score": region.score, "annotator": region.annotator, "root": region.root}
    return {name: value for name, value in found.items() if value is not None}


def own_phrase(record: GroundingRecord, region: Region) -> dict[str, Any]:
    """The phrase, where it is not what the spans of the caption say."""
    said = phrase_of(record.caption or "", region.tokens_positive)
    return {} if said == region.phrase else {"phrase": region.phrase}


def count_extra(numbers: Numbers, region: Region) -> None:
    """Count what :func:`origin` carries."""
    for name in origin(region):
        numbers[f"extra_{name}"] += 1


def count_lost(numbers: Numbers, record: GroundingRecord, *fields: str) -> None:
    """Count what of a record is not written: ``caption``, ``uncertain``, ``verified_absent`` and, with it, ``not_exhaustive``; of its
    regions ``score``, ``annotator``, ``root``, ``spans``. Empty ones are no loss, but an empty ``verified_absent`` is one."""
    of_regions = {
        "score": lambda r: r.score is not None,
        "annotator": lambda r: r.annotator is not None,
        "root": lambda r: r.root is not None,
        "spans": lambda r: bool(r.tokens_positive),
    }
    of_record = {
        "caption": int(record.caption is not None),
        "uncertain": len(record.uncertain),
        "verified_absent": int(record.verified_absent is not None),
        "not_exhaustive": len(record.not_exhaustive or ()),
    }
    for name in (*fields, *(("not_exhaustive",) if "verified_absent" in fields else ())):
        n = of_record[name] if name in of_record else sum(map(of_regions[name], record.regions))
        if n:
            numbers[f"lost_{name}"] += n
