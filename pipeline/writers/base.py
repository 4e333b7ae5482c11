"""Interface of export formats, and functions that they share.

A format streams records to its files, and counts what it cannot represent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pipeline.data.records import Box, DatasetCard, GroundingRecord, Region
from pipeline.execution.reports import Tally
from pipeline.readers.spans import phrase_of
from pipeline.writers.atomic_files import Sink
from pipeline.writers.unique_keys import Name, UniqueNames


@dataclass(frozen=True)
class Item:
    """A record to export. file: unique path of its image below the export's folder."""

    record: GroundingRecord
    file: str


@dataclass
class ExportContext:
    """Shared state of an export: output files, data set cards and counts.

    class_names: text that is the class of a grounding record's region; None: the format's default.
    val_share: share of the images in the validation split; None: no split.
    image_root: address of the export's folder for a labelling tool; None: the format's default.
    numbers: ``lost_X`` counts X missing in the output; ``extra_X`` counts X in fields that other
    readers of the format ignore and that ingest reads.
    """

    sink: Sink
    names: UniqueNames
    cards: Mapping[str, DatasetCard] = field(default_factory=dict)
    class_names: Literal["phrase", "root"] | None = None
    val_share: float | None = None
    image_root: str | None = None
    samples: Tally = field(default_factory=Tally)
    regions: Tally = field(default_factory=Tally)
    numbers: Counter[str] = field(default_factory=Counter)

    def unique_name(self, set_name: str, key: str) -> Name:
        """Name of the next image of a set; a changed key is counted."""
        name = self.names.take(set_name, key)
        self.numbers["renamed_duplicate_keys"] += name.renamed
        return name


def class_of(record: GroundingRecord, region: Region, class_names: Literal["phrase", "root"]) -> str:
    """Class name of a region; of a grounding record its phrase or head noun in lower case, "" if it
    has none.
    """
    if record.kind == "detection":
        return region.phrase
    name = region.root if class_names == "root" else region.phrase
    return " ".join((name or "").lower().split())


def kept_name(context: ExportContext, record: GroundingRecord, region: Region) -> str:
    """Class name of a region of a format with classes, phrases by default; "", counted as dropped, if it has none."""
    by = context.class_names or "phrase"
    if name := class_of(record, region, by):
        context.regions.keep()
    else:
        context.regions.drop(f"no_{by}")
    return name


class Target(Protocol):
    """Writer of a format. The files that it opens in the context's sink appear together when the
    stage commits.
    """

    folder: str
    """Folder of its images, below the export's folder."""
    takes_images: bool
    """Whether images are written into the format's own files and not as image files."""

    def add(self, item: Item, image: bytes | None) -> None:
        """Write a record. ``image``: encoded; None unless ``takes_images``."""
        ...

    def finish(self) -> None:
        """Write everything that is known only after the last record."""
        ...

    def hints(self, out: str) -> list[str]:
        """Lines that explain how to read the output."""
        ...


def json_bytes(value: Any) -> bytes:
    """One line of compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def xywh(box: Box) -> dict[str, list[float]]:
    """COCO's ``bbox``, with ``xyxy`` if x + w or y + h differs from the corner by rounding."""
    x1, y1, x2, y2 = box
    w, h = _side_length(x1, x2), _side_length(y1, y2)
    return {"bbox": [x1, y1, w, h], **({} if (x1 + w, y1 + h) == (x2, y2) else {"xyxy": [x1, y1, x2, y2]})}


def _side_length(start: float, end: float) -> float:
    """The shortest w with start + w == end; the plain difference if there is none."""
    length = end - start
    return next((w for d in (2, 4, 8) if start + (w := round(length, d)) == end), length)


def provenance(region: Region) -> dict[str, Any]:
    """Score, annotator and root of a region, as fields that other readers of the formats ignore."""
    fields = {"score": region.score, "annotator": region.annotator, "root": region.root}
    return {name: value for name, value in fields.items() if value is not None}


def explicit_phrase(record: GroundingRecord, region: Region) -> dict[str, Any]:
    """The phrase as a field, if it differs from the text of its spans."""
    text = phrase_of(record.caption or "", region.tokens_positive)
    return {} if text == region.phrase else {"phrase": region.phrase}


def count_extra(numbers: Counter[str], region: Region) -> None:
    """Count the fields of :func:`provenance`."""
    for name in provenance(region):
        numbers[f"extra_{name}"] += 1


LOST_BY_CLASSES = ("caption", "uncertain", "verified_absent", "score", "annotator", "root", "spans", "mask")
"""Fields that formats of boxes with class names do not hold."""


def count_lost(numbers: Counter[str], record: GroundingRecord, *fields: str) -> None:
    """Count fields of a record that are not written.

    Args:
        fields: of the record ``caption``, ``uncertain``, ``verified_absent`` (which includes
            ``not_exhaustive``); of its regions ``score``, ``annotator``, ``root``, ``mask``, ``spans``. Empty
            fields are not counted, except ``verified_absent``.
    """
    counts = {
        "caption": record.caption is not None,
        "uncertain": len(record.uncertain),
        "verified_absent": record.verified_absent is not None,
        "not_exhaustive": len(record.not_exhaustive or ()),
        "spans": sum(bool(region.tokens_positive) for region in record.regions),
    }
    for name in (*fields, *(("not_exhaustive",) if "verified_absent" in fields else ())):
        n = counts[name] if name in counts else sum(getattr(r, name) is not None for r in record.regions)
        if n:
            numbers[f"lost_{name}"] += n
