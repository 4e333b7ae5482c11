"""Ultralytics' YOLO layout: data.yaml, images/, and in labels/ a file per image with lines "class x
y w h", relative.

It only has class names. Those of grounding records are the phrases in lower case or, far fewer,
their head nouns. Scores, captions and absent classes are lost.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from pipeline.data.records import GroundingRecord
from pipeline.errors import InputError
from pipeline.io.hashing import hash_share
from pipeline.writers.base import LOST_BY_CLASSES, ExportContext, Item, count_lost, kept_name
from pipeline.writers.manifest import SetClassIds
from pipeline.writers.parallel_files import ParallelWriter

SPLITS = ("train", "val")
READ = {"jpg", "jpeg", "png", "webp", "bmp"}
"""Image extensions in shards that Ultralytics reads."""


class Yolo:
    """Writes the label files, and at the end data.yaml."""

    folder, takes_images = "images", False

    def __init__(self, context: ExportContext) -> None:
        self._context = context
        self._head = context.sink.open("data.yaml")
        self._files = ParallelWriter(context.sink.out)
        self._classes = SetClassIds(context.cards)
        self._splits = [] if context.val_share is None else [context.sink.open(f"{name}.txt") for name in SPLITS]

    def add(self, item: Item, image: bytes | None) -> None:
        """Write an image's label file; an empty one marks the image as background."""
        record, context = item.record, self._context
        count_lost(context.numbers, record, *LOST_BY_CLASSES)
        self._classes.add_set(record.dataset)
        stem, _, extension = item.file.rpartition(".")
        context.numbers["images_that_yolo_does_not_read"] += extension not in READ
        if self._splits:
            val = hash_share(f"{record.dataset}/{record.key}") < (context.val_share or 0)
            self._splits[val].write(f"./{item.file}\n".encode())
            context.numbers[f"images_of_{SPLITS[val]}"] += 1
        lines = b"".join(self._lines(record))
        self._files.put(f"labels/{stem.removeprefix('images/')}.txt", lines)
        context.samples.keep()

    def _lines(self, record: GroundingRecord) -> Iterator[bytes]:
        height, width = record.image_size
        for region in record.regions:
            if region.ignore:
                self._context.regions.drop("ignore_region")
                continue
            if not (name := kept_name(self._context, record, region)):
                continue
            x1, x2 = (min(max(x / width, 0.0), 1.0) for x in (region.box[0], region.box[2]))
            y1, y2 = (min(max(y / height, 0.0), 1.0) for y in (region.box[1], region.box[3]))
            cxcywh = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            yield f"{self._classes[name]} {' '.join(f'{value:.8g}' for value in cxcywh)}\n".encode()

    def finish(self) -> None:
        """Write data.yaml. Ultralytics requires ``val``; without a split it is the same as ``train``.

        Raises:
            InputError: a split has no image.
        """
        self._files.drain()
        numbers = self._context.numbers
        for split in SPLITS if self._splits else ():
            if not numbers[f"images_of_{split}"]:
                raise InputError(
                    f"--val-share {self._context.val_share}: found no image for {split}; want another share, or more "
                    "images"
                )
        names = {number: name for name, number in self._classes.ids.items()}
        same = "# images of `val` are those of `train`: name your own before you trust a measurement\n"
        head = "" if self._splits else same
        files = {split: f"{split}.txt" if self._splits else "images" for split in SPLITS}
        data = {**files, "names": names}
        if teachers := [card.labelled_by for card in self._context.cards.values() if card.labelled_by]:
            data["labelled_by"] = "; ".join(teachers)
        self._head.write((head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)).encode())
        self._context.numbers["classes"] += len(names)

    def hints(self, out: str) -> list[str]:
        return [f"yolo detect train data={out}/data.yaml"]
