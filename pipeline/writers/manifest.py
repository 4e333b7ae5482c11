"""Export formats with files for each set, and a manifest for ingest."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from pipeline.data.records import DatasetCard, GroundingRecord
from pipeline.writers.base import ExportContext, Item
from pipeline.writers.unique_keys import Name

MANIFEST = "manifest.yaml"


class SetFiles(ABC):
    """Files of one set. name: unique, of letters, digits, - and _. count: images that :class:`TaskWriter` added."""

    def __init__(self, context: ExportContext, name: str, record: GroundingRecord) -> None:
        self.context, self.name, self.dataset, self.kind = context, name, record.dataset, record.kind
        self.card = context.cards.get(record.dataset)
        self.label_space = self.card.label_space if self.card else None
        self.count = 0

    @abstractmethod
    def add(self, record: GroundingRecord, file: str, name: Name, image: bytes | None) -> None:
        """Write a record of the set with its image's file and unique name."""

    @abstractmethod
    def finish(self) -> dict[str, Any] | None:
        """Complete the files; returns the manifest's entry, None if ingest cannot read them."""


class SetWriter:
    """Writes the files of every (dataset, kind), and the manifest of those that ingest can read."""

    folder, takes_images = "images", False
    files: Callable[[ExportContext, str, GroundingRecord], Any]
    """Opens the files of a set, whose first record is given."""

    def __init__(self, context: ExportContext) -> None:
        self.context = context
        self.sets: dict[tuple[str, str], Any] = {}

    def add(self, item: Item, image: bytes | None) -> None:
        """Write a record to the files of its set."""
        files = self.files_of(item.record)
        files.add(item.record, item.file, self.context.unique_name(files.name, item.record.key), image)
        self.context.samples.keep()

    def files_of(self, record: GroundingRecord) -> Any:
        """Files of a record's set."""
        dataset_and_kind = (record.dataset, record.kind)
        if dataset_and_kind not in self.sets:
            name, taken = re.sub(r"[^A-Za-z0-9_-]", "_", record.dataset) or "set", {f.name for f in self.sets.values()}
            candidates = [name, f"{name}-{record.kind}", *(f"{name}-{record.kind}-{n}" for n in range(2, 10_000))]
            name = next(c for c in candidates if c not in taken)
            self.sets[dataset_and_kind] = self.files(self.context, name, record)
        return self.sets[dataset_and_kind]

    def finish(self) -> None:
        """Complete the files, and write the manifest."""
        rows = {}
        for files in self.sets.values():
            if (entry := files.finish()) is not None:
                card = files.card
                origin = {"licence": card.licence, "source": card.source, "note": card.labelled_by} if card else {}
                row = {"kind": files.kind, **entry, "images_folder": "."}
                rows[files.name] = {**row, **{k: v for k, v in origin.items() if v}}
        text = yaml.safe_dump({"sets": rows}, sort_keys=False, allow_unicode=True, width=1000)
        self.context.sink.open(MANIFEST).write(f"# ingest {MANIFEST} --out train\n{text}".encode())


class TaskWriter(SetWriter):
    """Writes the files of every set for a labelling tool, where images are known by their shard and key."""

    def add(self, item: Item, image: bytes | None) -> None:
        """Write a record to the files of its set; images are numbered from 0."""
        files = self.files_of(item.record)
        files.add(item.record, item.file, Name(item.record.key, files.count, False), image)
        files.count += 1
        self.context.samples.keep()

    def finish(self) -> None:
        """Complete the files."""
        for files in self.sets.values():
            files.finish()


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


class SetClassIds(ClassIds):
    """Class ids of several sets together: each set's label space as its first record comes."""

    def __init__(self, cards: Mapping[str, DatasetCard]) -> None:
        super().__init__()
        self._cards, self._sets = cards, set[str]()

    def add_set(self, dataset: str) -> None:
        """Add the classes of a record's set, if it is new."""
        if dataset not in self._sets:
            self._sets.add(dataset)
            card = self._cards.get(dataset)
            for name in (card and card.label_space) or ():
                self[name]
