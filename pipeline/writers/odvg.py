"""ODVG JSON Lines of Open-GroundingDino and MM-Grounding-DINO: one image a line, detection or
grounding.

These projects have neither ignore regions nor uncertain phrases. They are written beside
``instances`` and ``regions``, where only ingest reads them, so that they are not used as labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.data.records import GroundingRecord, Region
from pipeline.writers.base import ExportContext, count_extra, count_lost, json_bytes, provenance
from pipeline.writers.manifest import ClassIds, SetFiles, SetWriter
from pipeline.writers.unique_keys import Name


class _Lines(SetFiles):
    """A set's lines and label map. classes: None of a grounding set."""

    def __init__(self, context: ExportContext, name: str, record: GroundingRecord) -> None:
        super().__init__(context, name, record)
        self._file = context.sink.open(f"{name}.jsonl")
        self.label_map = f"{name}.label_map.json"
        self.classes = ClassIds(self.label_space) if record.kind == "detection" else None

    def add(self, record: GroundingRecord, file: str, name: Name, image: bytes | None) -> None:
        context = self.context
        height, width = record.image_size
        part = self._grounding(record) if self.classes is None else self._detection(record, self.classes)
        line = {"filename": file, "height": height, "width": width, "key": name.key, record.kind: part}
        self._file.write(json_bytes(line) + b"\n")
        for region in record.regions:
            count_extra(context.numbers, region)
            context.numbers["extra_ignore"] += region.ignore
        context.numbers["lines_without_a_region"] += not any(not r.ignore for r in record.regions)
        context.regions.keep(len(record.regions))

    def _detection(self, record: GroundingRecord, classes: ClassIds) -> dict[str, Any]:
        count_lost(self.context.numbers, record, "caption", "uncertain", "spans", "mask")
        part = _split("instances", record.regions, lambda r: {"label": classes[r.phrase], "category": r.phrase})
        if record.verified_absent is not None:
            self.context.numbers["extra_verified_absent"] += 1
            part["verified_absent"] = record.verified_absent
        if record.not_exhaustive is not None:
            part["not_exhaustive"] = record.not_exhaustive
        return part

    def _grounding(self, record: GroundingRecord) -> dict[str, Any]:
        count_lost(self.context.numbers, record, "verified_absent", "mask")
        self.context.numbers["extra_uncertain"] += len(record.uncertain)
        regions = _split(
            "regions", record.regions, lambda r: {"phrase": r.phrase, "tokens_positive": r.tokens_positive}
        )
        part = {"caption": record.caption, **regions}
        return part | ({"uncertain": record.uncertain} if record.uncertain else {})

    def finish(self) -> dict[str, Any]:
        """Write the label map."""
        entry: dict[str, Any] = {"format": f"odvg_{self.kind}", "annotations": f"{self.name}.jsonl"}
        if self.classes is not None:
            text = json.dumps({str(n): name for n, name in enumerate(self.classes.ids)}, ensure_ascii=False, indent=0)
            self.context.sink.open(self.label_map).write(text.encode() + b"\n")
            self.context.numbers["classes_outside_the_card"] += self.classes.outside
            entry["companions"] = {"classes": self.label_map}
        return entry


def _split(name: str, regions: Sequence[Region], fields_of: Callable[[Region], dict[str, Any]]) -> dict[str, Any]:
    """Labels as the field ``name``, ignore regions, if any, as ``ignore``."""

    def rows(ignore: bool) -> list[dict[str, Any]]:
        return [{"bbox": r.box, **fields_of(r), **provenance(r)} for r in regions if r.ignore == ignore]

    ignored = rows(True)
    return {name: rows(False), **({"ignore": ignored} if ignored else {})}


class Odvg(SetWriter):
    """Writes ``SET.jsonl``, ``SET.label_map.json`` (detection sets) and the manifest."""

    files = _Lines

    def hints(self, out: str) -> list[str]:
        lines = []
        for files in self.sets.values():
            entry = {"root": out, "anno": f"{out}/{files.name}.jsonl", "dataset_mode": "odvg"}
            if files.classes is not None:
                entry["label_map"] = f"{out}/{files.label_map}"
            lines.append(f"Open-GroundingDino: {json.dumps(entry, ensure_ascii=False)}")
        return lines
