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
from pipeline.io.atomic import HashingFile
from pipeline.writers.base import ExportContext, Item, count_extra, count_lost, json_bytes, provenance
from pipeline.writers.manifest import ClassIds, SetNames, write_manifest


class Odvg:
    """Writes ``SET.jsonl``, ``SET.label_map.json`` (detection sets) and the manifest."""

    folder, takes_images = "images", False

    def __init__(self, context: ExportContext) -> None:
        self._context, self._sets = context, SetNames()
        self._files: dict[str, HashingFile] = {}
        self._datasets: dict[str, GroundingRecord] = {}
        self._classes: dict[str, ClassIds] = {}

    def add(self, item: Item, image: bytes | None) -> None:
        record, context = item.record, self._context
        name = self._sets.of(record)
        if name not in self._files:
            self._files[name] = context.sink.open(f"{name}.jsonl")
            self._datasets[name] = record.model_copy(update={"regions": ()})
            if record.kind == "detection":
                card = context.cards.get(record.dataset)
                self._classes[name] = ClassIds(card.label_space if card else None)
        key = context.unique_name(name, record.key).key
        height, width = record.image_size
        part = self._detection(record, self._classes[name]) if record.kind == "detection" else self._grounding(record)
        line = {"filename": item.file, "height": height, "width": width, "key": key, record.kind: part}
        self._files[name].write(json_bytes(line) + b"\n")
        for region in record.regions:
            count_extra(context.numbers, region)
            context.numbers["extra_ignore"] += region.ignore
        context.numbers["lines_without_a_region"] += not any(not r.ignore for r in record.regions)
        context.samples.keep()
        context.regions.keep(len(record.regions))

    def _detection(self, record: GroundingRecord, classes: ClassIds) -> dict[str, Any]:
        count_lost(self._context.numbers, record, "caption", "uncertain", "spans")
        part = _split("instances", record.regions, lambda r: {"label": classes[r.phrase], "category": r.phrase})
        if record.verified_absent is not None:
            self._context.numbers["extra_verified_absent"] += 1
            part["verified_absent"] = record.verified_absent
        if record.not_exhaustive is not None:
            part["not_exhaustive"] = record.not_exhaustive
        return part

    def _grounding(self, record: GroundingRecord) -> dict[str, Any]:
        count_lost(self._context.numbers, record, "verified_absent")
        self._context.numbers["extra_uncertain"] += len(record.uncertain)
        regions = _split(
            "regions", record.regions, lambda r: {"phrase": r.phrase, "tokens_positive": r.tokens_positive}
        )
        part = {"caption": record.caption, **regions}
        return part | ({"uncertain": record.uncertain} if record.uncertain else {})

    def finish(self) -> None:
        """Write the label maps and the manifest."""
        sets = {}
        for name, record in self._datasets.items():
            fields: dict[str, Any] = {"kind": record.kind, "format": f"odvg_{record.kind}"}
            fields["annotations"] = f"{name}.jsonl"
            if name in self._classes:
                classes, file = self._classes[name], f"{name}.label_map.json"
                text = json.dumps({str(n): name for n, name in enumerate(classes.ids)}, ensure_ascii=False, indent=0)
                self._context.sink.open(file).write(text.encode() + b"\n")
                self._context.numbers["classes_outside_the_card"] += classes.outside
                fields |= {"companions": {"classes": file}}
            sets[name] = (record.dataset, fields)
        write_manifest(self._context, sets, ".")

    def hints(self, out: str) -> list[str]:
        lines = []
        for name in self._files:
            entry = {"root": out, "anno": f"{out}/{name}.jsonl", "dataset_mode": "odvg"}
            if name in self._classes:
                entry["label_map"] = f"{out}/{name}.label_map.json"
            lines.append(f"Open-GroundingDino: {json.dumps(entry, ensure_ascii=False)}")
        return lines


def _split(name: str, regions: Sequence[Region], fields_of: Callable[[Region], dict[str, Any]]) -> dict[str, Any]:
    """Labels as the field ``name``, ignore regions, if any, as ``ignore``."""

    def rows(ignore: bool) -> list[dict[str, Any]]:
        return [{"bbox": r.box, **fields_of(r), **provenance(r)} for r in regions if r.ignore == ignore]

    ignored = rows(True)
    return {name: rows(False), **({"ignore": ignored} if ignored else {})}
