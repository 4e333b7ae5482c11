"""GLIP's caption records, as its released code reads them: a label TSV and an image TSV, one image
a line.

They are written in version 1: an entry is a box with its score and spans. Detection sets are
excluded; GLIP reads them as COCO JSON. GLIP keeps boxes with scores above 0.5, so human labels get
the score 1.
"""

from __future__ import annotations

import base64
from typing import Any

from pipeline.io.atomic import HashingFile
from pipeline.writers.base import ExportContext, Item, count_lost, json_bytes
from pipeline.writers.manifest import SetNames, write_manifest


class Glip:
    """Writes ``SET.label.tsv`` and, with images, ``SET.img.tsv``, each with a ``.lineidx`` of its
    lines' offsets.
    """

    folder, takes_images = "images", True

    def __init__(self, context: ExportContext) -> None:
        self._context, self._sets = context, SetNames()
        self._labels: dict[str, _Tsv] = {}
        self._images: dict[str, _Tsv] = {}
        self._datasets: dict[str, str] = {}

    def add(self, item: Item, image: bytes | None) -> None:
        """Write a line of each file. Detection records and ignore regions are dropped and counted."""
        record, context = item.record, self._context
        if record.kind == "detection":
            context.samples.drop("detection_record")
            context.regions.drop("detection_record", len(record.regions))
            return
        name = self._sets.of(record)
        if name not in self._labels:
            self._labels[name] = _Tsv(context, f"{name}.label")
            self._datasets[name] = record.dataset
        key = context.unique_name(name, record.key).key.encode()
        count_lost(context.numbers, record, "uncertain", "verified_absent", "annotator", "root")
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
        self._labels[name].add(key, json_bytes(labels))
        if image is not None:
            if name not in self._images:
                self._images[name] = _Tsv(context, f"{name}.img")
            self._images[name].add(key, base64.b64encode(image))
        context.samples.keep()
        context.regions.keep(len(kept))
        context.regions.drop("ignore_region", len(record.regions) - len(kept))

    def finish(self) -> None:
        """Write the manifest, if there are images: labels do not state the shard of an image."""
        sets: dict[str, tuple[str, dict[str, Any]]] = {}
        for name in self._images:
            files = {"annotations": f"{name}.label.tsv", "companions": {"images": f"{name}.img.tsv"}}
            sets[name] = self._datasets[name], {"kind": "grounding", "format": "glip_captions", **files}
        if sets:
            write_manifest(self._context, sets, ".")

    def hints(self, out: str) -> list[str]:
        if not self._images:
            names = ", ".join(f"{out}/{name}.label.tsv" for name in self._labels)
            return [
                f"labels of a CaptionTSV: {names}; its image TSVs, and a manifest for ingest, come with --images copy"
            ]
        return [f"GLIP's CaptionTSV: {out}/{name}.img.tsv with {out}/{name}.label.tsv" for name in self._labels]


class _Tsv:
    """Writes lines of a key and a value, and an index of their byte offsets."""

    def __init__(self, context: ExportContext, name: str) -> None:
        self._file: HashingFile = context.sink.open(f"{name}.tsv")
        self._index: HashingFile = context.sink.open(f"{name}.lineidx")

    def add(self, key: bytes, value: bytes) -> None:
        self._index.write(b"%d\n" % self._file.tell())
        self._file.write(key + b"\t" + value + b"\n")
