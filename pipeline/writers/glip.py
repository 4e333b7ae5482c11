"""GLIP's own caption records, as its released readers take them: a label TSV and an image TSV, a line an image.

Version 1 of them: a box an entry, each with its score and its spans. Detection sets are no caption records; GLIP reads
those as COCO JSON. Its readers keep boxes of a score above 0.5, so human labels are given the score 1.
"""

from __future__ import annotations

import base64
from typing import Any

from pipeline.data.records import Box
from pipeline.io.atomic import HashingFile
from pipeline.writers.base import ExportContext, Item, count_lost, json_bytes
from pipeline.writers.manifest import SetNames, write_manifest


class Glip:
    """``SET.label.tsv`` and, with the images, ``SET.img.tsv``; both with the ``.lineidx`` of where each line begins."""

    folder, takes_images = "images", True

    def __init__(self, context: ExportContext) -> None:
        self._desk, self._sets = context, SetNames()
        self._labels: dict[str, _Tsv] = {}
        self._images: dict[str, _Tsv] = {}
        self._datasets: dict[str, str] = {}

    def add(self, item: Item, image: bytes | None) -> None:
        """Write a line of each file; detection records and ignore regions are counted instead."""
        record, context = item.record, self._desk
        if record.kind == "detection":
            context.samples.drop("detection_record")
            context.regions.drop("detection_record", len(record.regions))
            return
        name = self._sets.of(record)
        if name not in self._labels:
            self._labels[name] = _Tsv(context, f"{name}.label")
            self._datasets[name] = record.dataset
        called = context.names.take(name, record.key)
        context.numbers["renamed_duplicate_keys"] += called.renamed
        count_lost(context.numbers, record, "uncertain", "verified_absent", "annotator", "root")
        kept = [region for region in record.regions if not region.ignore]
        context.numbers["made_score_1"] += sum(region.score is None for region in kept)
        height, width = record.image_size
        labels = {
            "img_h": height,
            "img_w": width,
            "caption": record.caption,
            "bboxes": [last_pixel(region.box) for region in kept],
            "scores": [1.0 if region.score is None else region.score for region in kept],
            "tokens_positive": [region.tokens_positive for region in kept],
        }
        key = called.key.encode()
        self._labels[name].add(key, json_bytes(labels))
        if image is not None:
            if name not in self._images:
                self._images[name] = _Tsv(context, f"{name}.img")
            self._images[name].add(key, base64.b64encode(image))
        context.samples.keep()
        context.regions.keep(len(kept))
        context.regions.drop("ignore_region", len(record.regions) - len(kept))

    def finish(self) -> None:
        """Write the manifest, where there are images: labels alone do not say in which shard each one's lies."""
        sets = {}
        for name in self._images:
            fields: dict[str, Any] = {
                "kind": "grounding",
                "format": "glip_captions",
                "annotations": f"{name}.label.tsv",
                "companions": {"images": f"{name}.img.tsv"},
            }
            sets[name] = (self._datasets[name], fields)
        if sets:
            write_manifest(self._desk, sets, ".")

    def hints(self, out: str) -> list[str]:
        """The files of a CaptionTSV."""
        if not self._images:
            names = ", ".join(f"{out}/{name}.label.tsv" for name in self._labels)
            return [
                f"labels of a CaptionTSV: {names}; its image TSVs, and a manifest for ingest, come with --images copy"
            ]
        return [f"GLIP's CaptionTSV: {out}/{name}.img.tsv with {out}/{name}.label.tsv" for name in self._labels]


def last_pixel(box: Box) -> Box:
    """A box of ours, which ends behind its last pixel, as GLIP's, which names it; its reader takes corners as they stand."""
    return box[0], box[1], box[2] - 1, box[3] - 1


class _Tsv:
    """Lines of a key and a value, and the byte at which each begins."""

    def __init__(self, context: ExportContext, name: str) -> None:
        self._file: HashingFile = context.sink.open(f"{name}.tsv")
        self._index: HashingFile = context.sink.open(f"{name}.lineidx")

    def add(self, key: bytes, value: bytes) -> None:
        self._index.write(b"%d\n" % self._file.tell())
        self._file.write(key + b"\t" + value + b"\n")
