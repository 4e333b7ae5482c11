"""COCO JSON: detection sets in COCO's and LVIS' layout, grounding sets in MDETR's (captions of
images, spans of boxes).

Each set is one file, written in one pass: annotations are spooled and appended after the images.
Score, annotator and head noun are additional fields of an annotation, which other readers ignore
and ingest reads.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from typing import Any

from pycocotools.mask import area as mask_area

from pipeline.data.records import GroundingRecord, Region
from pipeline.io.paths import is_url
from pipeline.writers.atomic_files import JsonRows
from pipeline.writers.base import (
    ExportContext,
    Item,
    class_of,
    count_extra,
    count_lost,
    explicit_phrase,
    json_bytes,
    provenance,
    xywh,
)
from pipeline.writers.manifest import ClassIds, SetFiles, SetWriter
from pipeline.writers.unique_keys import Name


class Coco(SetWriter):
    """Writes ``SET.json`` for every set, and the manifest."""

    @staticmethod
    def files(context: ExportContext, name: str, record: GroundingRecord) -> _File:
        return (_Detection if record.kind == "detection" else _Grounding)(context, name, record)

    def add(self, item: Item, image: bytes | None) -> None:
        """Write a record to the files of its set."""
        if item.record.kind == "grounding" and self.context.class_names is not None:
            item = Item(self._by_class(item.record), item.file)
        super().add(item, image)

    def _by_class(self, record: GroundingRecord) -> GroundingRecord:
        """A grounding record as a detection record, with phrases or head nouns as its classes."""
        context = self.context
        class_names = context.class_names or "phrase"
        regions = []
        for region in record.regions:
            if name := class_of(record, region, class_names):
                regions.append(region.model_copy(update={"phrase": name, "tokens_positive": ()}))
            else:
                context.regions.drop(f"no_{class_names}")
        count_lost(context.numbers, record, "caption", "uncertain", "spans")
        changes = {"kind": "detection", "caption": None, "uncertain": (), "regions": tuple(regions)}
        return record.model_copy(update=changes)

    def hints(self, out: str) -> list[str]:
        names = ", ".join(f"{out}/{files.name}.json" for files in self.sets.values())
        return [f"read them with pycocotools.coco.COCO, image files are relative to {out}: {names}"]


class _File(SetFiles):
    """A set's file."""

    format = ""

    def __init__(self, context: ExportContext, name: str, record: GroundingRecord) -> None:
        super().__init__(context, name, record)
        self._file, self._spool = context.sink.open(f"{name}.json"), context.sink.spool()
        card = self.card
        head = {"description": self.dataset, **({"url": card.source} if card and is_url(card.source or "") else {})}
        if card and card.labelled_by:
            head["labelled_by"] = card.labelled_by
        licences = [{"id": 1, "name": card.licence, "url": ""}] if card and card.licence else []
        self._file.write(b'{"info":' + json_bytes(head) + b',\n"licenses":' + json_bytes(licences) + b',\n"images":[')
        self._images, self._annotations = JsonRows(self._file), JsonRows(self._spool)
        self.classes = ClassIds(self.label_space, first=1)
        self._frequency = card.frequency or {} if card else {}

    def add(self, record: GroundingRecord, file: str, name: Name, image: bytes | None) -> None:
        height, width = record.image_size
        row = {"id": name.number, "file_name": file, "height": height, "width": width, "key": name.key}
        self._images.add(json_bytes(row | self._of_image(record)))
        for region in record.regions:
            row = {
                "id": self._annotations.count + 1,
                "image_id": name.number,
                "category_id": self._category(region),
                **xywh(region.box),
                **_extent(region, record.image_size),
                "iscrowd": int(region.ignore),
                **({"ignore": 1} if region.ignore else {}),  # LVIS' tools only use this field
            }
            count_extra(self.context.numbers, region)
            self._annotations.add(json_bytes(row | self._of_region(record, region) | provenance(region)))
        self.context.regions.keep(len(record.regions))

    @abstractmethod
    def _of_image(self, record: GroundingRecord) -> dict[str, Any]: ...

    def _of_region(self, record: GroundingRecord, region: Region) -> dict[str, Any]:
        return {}

    @abstractmethod
    def _category(self, region: Region) -> int: ...

    def finish(self) -> dict[str, Any]:
        self._file.write(b'\n],\n"annotations":[')
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, self._file)
        categories: list[dict[str, Any]] = []
        for name, number in self.classes.ids.items():
            frequency = {"frequency": self._frequency[name]} if name in self._frequency else {}
            categories.append({"id": number, "name": name, "supercategory": "object", **frequency})
        self._file.write(b'\n],\n"categories":' + json_bytes(categories) + b"}\n")
        self.context.numbers["classes_outside_the_card"] += self.classes.outside
        return {"format": self.format, "annotations": f"{self.name}.json"}


def _extent(region: Region, size: tuple[int, int]) -> dict[str, Any]:
    """``area``: of the box, or of the mask beside its ``segmentation`` as RLE. size: of the image, (height, width)."""
    if region.mask is None:
        x1, y1, x2, y2 = region.box
        return {"area": round((x2 - x1) * (y2 - y1), 2)}
    rle = {"size": list(size), "counts": region.mask}
    return {"area": int(mask_area(rle)), "segmentation": rle}


class _Detection(_File):
    """COCO's layout; for a federated set LVIS', with the absent and the not exhaustively labelled
    classes of images.
    """

    format = "coco"

    def __init__(self, context: ExportContext, name: str, record: GroundingRecord) -> None:
        super().__init__(context, name, record)
        self._federated = self._exhaustive = 0

    def _category(self, region: Region) -> int:
        return self.classes[region.phrase]

    def _of_image(self, record: GroundingRecord) -> dict[str, Any]:
        count_lost(self.context.numbers, record, "caption", "uncertain", "spans")
        incomplete = sorted({self.classes[name] for name in record.not_exhaustive or ()})
        if record.verified_absent is None:
            self._exhaustive += 1
            return {"not_exhaustive_category_ids": incomplete} if incomplete else {}
        self._federated += 1
        absent = sorted({self.classes[name] for name in record.verified_absent})
        row: dict[str, Any] = {"neg_category_ids": absent, "not_exhaustive_category_ids": incomplete}
        if record.not_exhaustive is None:  # LVIS' reader requires the list; an empty one would mean "all are labelled"
            self.context.numbers["not_exhaustive_unknown"] += 1
            row["not_exhaustive_unknown"] = True
        return row

    def finish(self) -> dict[str, Any]:
        if self._federated and self._exhaustive:  # in a federated file, no class counts as absent in such an image
            self.context.numbers["lost_all_others_absent"] += self._exhaustive
        return super().finish()


class _Grounding(_File):
    """MDETR's layout. ``tokens_negative``: caption spans that are negatives of other boxes."""

    format = "mdetr"

    def __init__(self, context: ExportContext, name: str, record: GroundingRecord) -> None:
        super().__init__(context, name, record)
        self.classes = ClassIds(("object",), first=1)

    def _category(self, region: Region) -> int:
        return 1

    def _of_image(self, record: GroundingRecord) -> dict[str, Any]:
        count_lost(self.context.numbers, record, "verified_absent")
        self.context.numbers["extra_uncertain"] += len(record.uncertain)
        caption = record.caption or ""
        certain = _without(len(caption), record.uncertain)
        row = {"caption": caption, "dataset_name": self.dataset, "tokens_negative": certain}
        return row | ({"uncertain": record.uncertain} if record.uncertain else {})

    def _of_region(self, record: GroundingRecord, region: Region) -> dict[str, Any]:
        return {"tokens_positive": region.tokens_positive, **explicit_phrase(record, region)}


def _without(length: int, spans: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Intervals of ``[0, length)`` outside all spans."""
    gaps, covered = [], 0
    for start, end in sorted(spans):
        if start > covered:
            gaps.append((covered, start))
        covered = max(covered, end)
    return [*gaps, (covered, length)] if covered < length else gaps
