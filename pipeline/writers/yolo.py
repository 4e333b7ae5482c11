"""Ultralytics' YOLO layout: data.yaml, images/, and for every image a labels/ file of lines "class x y w h" in shares.

Class names are all it knows. Those of grounding records are the phrases in lower case, or their head nouns, which are far
fewer; scores, captions and what is known to be absent have no place in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from pipeline.data.records import GroundingRecord, Region
from pipeline.writers.base import ExportContext, Item, count_lost
from pipeline.writers.manifest import ClassIds
from pipeline.writers.parallel_files import Files

READ = {"jpg", "jpeg", "png", "webp", "bmp"}
"""Of the images that shards may hold, those that Ultralytics reads."""


class Yolo:
    """The label files are written as they come; data.yaml, which leads to them, at the end."""

    folder, takes_images = "images", False

    def __init__(self, context: ExportContext) -> None:
        self._desk = context
        self._head = context.sink.open("data.yaml")
        self._files = Files(context.sink.out)
        self._classes, self._sets = ClassIds(), set[str]()

    def add(self, item: Item, image: bytes | None) -> None:
        """Write an image's label file; one without labels has an empty file, and is background."""
        record, context = item.record, self._desk
        count_lost(
            context.numbers, record, "caption", "uncertain", "verified_absent", "score", "annotator", "root", "spans"
        )
        if record.dataset not in self._sets:
            self._sets.add(record.dataset)
            card = context.cards.get(record.dataset)
            for name in (card.label_space or ()) if card is not None else ():
                self._classes[name]
        stem, _, extension = item.file.rpartition(".")
        context.numbers["images_that_yolo_does_not_read"] += extension not in READ
        lines = b"".join(self._lines(record))
        self._files.put(f"labels/{stem.removeprefix('images/')}.txt", lines)
        context.samples.keep()

    def _lines(self, record: GroundingRecord) -> Iterator[bytes]:
        height, width = record.image_size
        for region in record.regions:
            name = self._name(record, region)
            if region.ignore:
                self._desk.regions.drop("ignore_region")
                continue
            if not name:
                self._desk.regions.drop("no_root" if self._desk.class_names == "root" else "no_phrase")
                continue
            self._desk.regions.keep()
            x1, x2 = (min(max(x / width, 0.0), 1.0) for x in (region.box[0], region.box[2]))
            y1, y2 = (min(max(y / height, 0.0), 1.0) for y in (region.box[1], region.box[3]))
            shares = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            yield f"{self._classes[name]} {' '.join(f'{share:.8g}' for share in shares)}\n".encode()

    def _name(self, record: GroundingRecord, region: Region) -> str:
        if record.kind == "detection":
            return region.phrase
        name = region.root if self._desk.class_names == "root" else region.phrase
        return " ".join((name or "").lower().split())

    def finish(self) -> None:
        """Write data.yaml; Ultralytics wants a ``val``, and a record does not say which images it would be."""
        self._files.drain()
        names = {number: name for name, number in self._classes.ids.items()}
        head = "# images of `val` are those of `train`: name your own before you trust a measurement\n"
        data = {"train": "images", "val": "images", "names": names}
        self._head.write((head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)).encode())
        self._desk.numbers["classes"] += len(names)

    def hints(self, out: str) -> list[str]:
        """How to train on it."""
        return [f"yolo detect train data={out}/data.yaml"]
