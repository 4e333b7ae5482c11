"""The sets of an export: what each is called in file names and in the manifest that leads ingest back."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipeline.data.records import DatasetCard, GroundingRecord
from pipeline.writers.base import ExportContext

MANIFEST = "manifest.yaml"


class SetNames:
    """A file name for each (dataset, kind), of letters, digits, - and _; made when the first record comes."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    def of(self, record: GroundingRecord) -> str:
        """The name of a record's set."""
        which = (record.dataset, record.kind)
        if which not in self._names:
            name = re.sub(r"[^A-Za-z0-9_-]", "_", record.dataset) or "set"
            taken = set(self._names.values())
            candidates = [name, f"{name}-{record.kind}", *(f"{name}-{record.kind}-{n}" for n in range(2, 10_000))]
            self._names[which] = next(c for c in candidates if c not in taken)
        return self._names[which]


def write_manifest(context: ExportContext, sets: dict[str, tuple[str, dict[str, Any]]], folder: str) -> None:
    """``manifest.yaml``: ingest makes training shards of the export again. ``sets``: name -> (dataset, fields)."""
    rows = {}
    for name, (dataset, fields) in sets.items():
        card = context.cards.get(dataset)
        about = {"licence": card.licence, "source": card.source} if card is not None else {}
        rows[name] = {**fields, "images_folder": folder, **{k: v for k, v in about.items() if v}}
    text = yaml.safe_dump({"sets": rows}, sort_keys=False, allow_unicode=True, width=1000)
    context.sink.open(MANIFEST).write(f"# ingest {MANIFEST} --out train\n{text}".encode())


class ClassIds:
    """Ids of class names: the set's own order where its card tells it, others in the order they come."""

    def __init__(self, card: DatasetCard | None = None, first: int = 0) -> None:
        self.known = card is not None and card.label_space is not None
        names = card.label_space or () if card is not None else ()
        self.ids = {name: first + i for i, name in enumerate(dict.fromkeys(names))}
        self._first, self.outside = first, 0

    def __getitem__(self, name: str) -> int:
        if name not in self.ids:
            self.ids[name] = self._first + len(self.ids)
            self.outside += self.known
        return self.ids[name]
