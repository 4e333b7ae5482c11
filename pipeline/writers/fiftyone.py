"""A FiftyOne dataset on disk, as ``fiftyone.types.FiftyOneDataset`` imports it: metadata.json,
samples.json, data/.

Without a version in metadata.json every version of FiftyOne reads the samples field by field and
infers the schema, so all fields of a record are written. Pseudo-labels are ``predictions`` with a
confidence, human labels ``ground_truth``; ignore regions have the tag "ignore".
"""

from __future__ import annotations

from typing import Any

from pipeline.data.records import GroundingRecord, Region
from pipeline.writers.atomic_files import JsonRows
from pipeline.writers.base import ExportContext, Item, count_lost, json_bytes


class FiftyOne:
    """Writes one dataset of all sets, with each sample tagged with the name of its set."""

    folder, takes_images = "data", False

    def __init__(self, context: ExportContext) -> None:
        self._context = context
        self._head = context.sink.open("metadata.json")  # the first file appears last
        self._file = context.sink.open("samples.json")
        self._file.write(b'{"samples":[')
        self._rows = JsonRows(self._file)

    def add(self, item: Item, image: bytes | None) -> None:
        record = item.record
        count_lost(self._context.numbers, record, "mask")
        self._rows.add(json_bytes(_sample(item)))
        self._context.samples.keep()
        self._context.regions.keep(len(record.regions))

    def finish(self) -> None:
        """End the list of samples, and write the metadata."""
        self._file.write(b"\n]}\n")
        cards = {name: card.model_dump(mode="json", exclude_none=True) for name, card in self._context.cards.items()}
        head = {"media_type": "image", "info": {"source": "glip-self-train", "sets": cards}}
        self._head.write(json_bytes(head) + b"\n")

    def hints(self, out: str) -> list[str]:
        return [f'fiftyone.Dataset.from_dir("{out}", dataset_type=fiftyone.types.FiftyOneDataset)']


def _sample(item: Item) -> dict[str, Any]:
    record = item.record
    height, width = record.image_size
    fields = {
        "filepath": item.file,
        "tags": [record.dataset],
        "metadata": {"_cls": "ImageMetadata", "width": width, "height": height},
        "key": record.key,
        "kind": record.kind,
        "caption": record.caption,
        "ground_truth": _detections(record, [r for r in record.regions if r.score is None]),
        "predictions": _detections(record, [r for r in record.regions if r.score is not None]),
        "uncertain": record.uncertain or None,
        "verified_absent": record.verified_absent,
        "not_exhaustive": record.not_exhaustive,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _detections(record: GroundingRecord, regions: list[Region]) -> dict[str, Any] | None:
    """Regions as FiftyOne's detections, with relative boxes x, y, width, height."""
    height, width = record.image_size
    rows = []
    for region in regions:
        x1, y1, x2, y2 = region.box
        row = {
            "_cls": "Detection",
            "label": region.phrase,
            "bounding_box": [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
            "tags": ["ignore"] if region.ignore else [],
            "confidence": region.score,
            "tokens_positive": region.tokens_positive or None,
            "annotator": region.annotator,
            "root": region.root,
        }
        rows.append({name: value for name, value in row.items() if value is not None})
    return {"_cls": "Detections", "detections": rows} if rows else None
