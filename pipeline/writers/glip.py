"""GLIP's caption records, as its released code reads them: a label TSV and an image TSV, one image
a line.

They are written in version 1: an entry is a box with its score and spans. Detection sets are
excluded; GLIP reads them as COCO JSON. GLIP keeps boxes with scores above 0.5, so human labels get
the score 1.
"""

from __future__ import annotations

import base64
from typing import Any

from pipeline.data.records import GroundingRecord
from pipeline.io.atomic import HashingFile
from pipeline.writers.base import ExportContext, Item, count_lost, json_bytes
from pipeline.writers.manifest import SetFiles, SetWriter
from pipeline.writers.unique_keys import Name


class _Tsv:
    """Writes lines of a key and a value, and an index of their byte offsets."""

    def __init__(self, context: ExportContext, name: str) -> None:
        self._file: HashingFile = context.sink.open(f"{name}.tsv")
        self._index: HashingFile = context.sink.open(f"{name}.lineidx")

    def add(self, key: bytes, value: bytes) -> None:
        self._index.write(b"%d\n" % self._file.tell())
        self._file.write(key + b"\t" + value + b"\n")


class _Pair(SetFiles):
    """A set's TSVs. images: None until the first image."""

    def __init__(self, context: ExportContext, name: str, record: GroundingRecord) -> None:
        super().__init__(context, name, record)
        self._labels = _Tsv(context, f"{name}.label")
        self.images: _Tsv | None = None

    def add(self, record: GroundingRecord, file: str, name: Name, image: bytes | None) -> None:
        key, context = name.key.encode(), self.context
        count_lost(context.numbers, record, "uncertain", "verified_absent", "annotator", "root", "mask")
        kept = [region for region in record.regions if not region.ignore]
        context.numbers["made_score_1"] += sum(region.score is None for region in kept)
        height, width = record.image_size
        labels = {
            "img_h": height,
            "img_w": width,
            "caption": record.caption,
            "bboxes": [(x1, y1, x2 - 1, y2 - 1) for x1, y1, x2, y2 in (region.box for region in kept)],  # inclusive
            "scores": [1.0 if region.score is None else region.score for region in kept],
            "tokens_positive": [region.tokens_positive for region in kept],
        }
        self._labels.add(key, json_bytes(labels))
        if image is not None:
            self.images = self.images or _Tsv(context, f"{self.name}.img")
            self.images.add(key, base64.b64encode(image))
        context.regions.keep(len(kept))
        context.regions.drop("ignore_region", len(record.regions) - len(kept))

    def finish(self) -> dict[str, Any] | None:
        files = {"annotations": f"{self.name}.label.tsv", "companions": {"images": f"{self.name}.img.tsv"}}
        return None if self.images is None else {"format": "glip_captions", **files}


class Glip(SetWriter):
    """Writes ``SET.label.tsv`` and, with images, ``SET.img.tsv``, each with a ``.lineidx`` of its
    lines' offsets.
    """

    files, takes_images = _Pair, True

    def add(self, item: Item, image: bytes | None) -> None:
        """Write a line of each file. Detection records and ignore regions are dropped and counted."""
        if item.record.kind == "detection":
            self.context.samples.drop("detection_record")
            self.context.regions.drop("detection_record", len(item.record.regions))
        else:
            super().add(item, image)

    def finish(self) -> None:
        """Write the manifest, if there are images: labels do not state the shard of an image."""
        if any(files.images for files in self.sets.values()):
            super().finish()

    def hints(self, out: str) -> list[str]:
        names = [f"{out}/{files.name}" for files in self.sets.values()]
        if any(files.images for files in self.sets.values()):
            return [f"GLIP's CaptionTSV: {name}.img.tsv with {name}.label.tsv" for name in names]
        labels = ", ".join(f"{name}.label.tsv" for name in names)
        return [f"labels of a CaptionTSV: {labels}; its image TSVs, and a manifest for ingest, come with --images copy"]
