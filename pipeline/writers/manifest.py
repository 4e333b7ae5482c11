"""File names and class ids of an export's sets, and its manifest for ingest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.data.records import GroundingRecord
from pipeline.writers.base import ExportContext

MANIFEST = "manifest.yaml"


class SetNames:
    """Assigns each (dataset, kind) a unique file name of letters, digits, - and _."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    def of(self, record: GroundingRecord) -> str:
        """Name of a record's set."""
        dataset_and_kind = (record.dataset, record.kind)
        if dataset_and_kind not in self._names:
            name = re.sub(r"[^A-Za-z0-9_-]", "_", record.dataset) or "set"
            taken = set(self._names.values())
            candidates = [name, f"{name}-{record.kind}", *(f"{name}-{record.kind}-{n}" for n in range(2, 10_000))]
            self._names[dataset_and_kind] = next(c for c in candidates if c not in taken)
        return self._names[dataset_and_kind]


def write_manifest(context: ExportContext, sets: dict[str, tuple[str, dict[str, Any]]], folder: str) -> None:
    """Write ``manifest.yaml`` for ingest. ``sets``: name -> (dataset, fields)."""
    rows = {}
    for name, (dataset, fields) in sets.items():
        card = context.cards.get(dataset)
        origin = {"licence": card.licence, "source": card.source} if card is not None else {}
        rows[name] = {**fields, "images_folder": folder, **{k: v for k, v in origin.items() if v}}
    text = yaml.safe_dump({"sets": rows}, sort_keys=False, allow_unicode=True, width=1000)
    context.sink.open(MANIFEST).write(f"# ingest {MANIFEST} --out train\n{text}".encode())


class ClassIds:
    """Assigns class ids: in the order of the label space, if known, then in order of appearance."""

    def __init__(self, label_space: Sequence[str] | None = None, first: int = 0) -> None:
        self.known = label_space is not None
        self.ids = {name: first + i for i, name in enumerate(dict.fromkeys(label_space or ()))}
        self._first, self.outside = first, 0

    def __getitem__(self, name: str) -> int:
        if name not in self.ids:
            self.ids[name] = self._first + len(self.ids)
            self.outside += self.known
        return self.ids[name]
