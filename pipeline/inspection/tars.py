"""Statistics of a tar: a training shard with records, or a crawl shard with captions."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from pipeline.data.crawl import caption_of, image_of
from pipeline.data.image_links import LinkReader
from pipeline.data.images import ImageError, image_size
from pipeline.data.records import GroundingRecord
from pipeline.errors import InputError
from pipeline.inspection.counts import Counts, Picture, Pictures, key_hash, reaches_outside, sample_rank
from pipeline.inspection.samples import record_sample
from pipeline.io.paths import stem
from pipeline.io.samples import read_samples
from pipeline.io.tars import TarProblems, TarSample


def kind_of_tar(shard: str) -> Literal["training", "crawl"] | None:
    """Kind of a tar: "training" if its first valid JSON looks like a record, even an invalid one.

    None if it has no sample. All samples of training shards have a JSON; those of a crawl may have
    none.
    """
    sample = None
    for sample in read_samples(shard):
        if "json" in sample.files:
            try:
                data = json.loads(sample.files["json"])
            except ValueError:
                continue
            return "training" if isinstance(data, dict) and {"regions", "kind"} <= data.keys() else "crawl"
    return None if sample is None else "crawl"


def count_tar(shard: str, *, records: bool, pictures: int) -> Counts:
    """Count a tar.

    Args:
        records: whether it is a training shard.
        pictures: maximum number of samples to draw.

    Raises:
        InputError: missing, or not a tar.
    """
    return _Tar(shard, pictures).count(records)


class _Tar:
    """Counts one tar."""

    def __init__(self, shard: str, pictures: int) -> None:
        self._shard, self._name = shard, stem(shard)
        self.counts = Counts()
        self._pictures, self._links = Pictures(pictures), LinkReader()
        self._boxes: list[tuple[float, ...]] = []
        self._box_images: list[tuple[int, int]] = []
        self._values: dict[str, list[float]] = defaultdict(list)  # by the name of their histogram
        self._sizes: list[tuple[int, int]] = []

    def count(self, records: bool) -> Counts:
        problems, counts = TarProblems(), self.counts
        for sample in read_samples(self._shard, problems):
            counts.numbers["samples"] += 1
            dataset = self._training_sample(sample) if records else self._crawl_sample(sample)
            counts.keys.append(key_hash(f"{dataset}/{sample.key}"))
        counts.problems.update(problems.counts)
        for note in problems.notes:
            counts.note(note)
        counts.boxes(np.array(self._boxes, np.float64).reshape(-1, 4), np.array(self._box_images).reshape(-1, 2))
        for name, values in self._values.items():
            counts.bin(name, np.array(values, np.float64))
        counts.sizes(self._sizes)
        counts.pictures = self._pictures.chosen()
        return counts

    def _training_sample(self, sample: TarSample) -> str:
        """Count a sample of a training shard; returns its data set, in which keys must be unique."""
        counts, where = self.counts, f"{self._name}/{sample.key}"
        try:
            record = GroundingRecord.model_validate_json(sample.files.get("json", b""))
        except ValidationError as error:
            reason = "no_record" if "json" not in sample.files else _why_refused(sample.files["json"])
            counts.numbers["refused"] += 1
            counts.problem(reason, f"{where}: {reason}: {_first(error)}")
            self._image(sample, None)
            return ""
        drawable = self._image(sample, record)
        self._record(record, where)
        labelled = any(not r.ignore for r in record.regions)
        rank = sample_rank(self._name, sample.key, labelled)
        if drawable and self._pictures.wants(rank) and (data := self._bytes(sample, where)) is not None:
            shown = record_sample(self._name, sample.key, record)
            self._pictures.add(Picture(rank, self._name, sample.key, shown, data))
        return record.dataset

    def _bytes(self, sample: TarSample, where: str) -> bytes | None:
        if (image := image_of(sample)) is not None:
            return image[1]
        try:
            return self._links.read(self._shard, sample.files["link"])
        except (InputError, OSError) as error:
            self.counts.problem("link_broken", f"{where}: {error}")
            return None

    def _image(self, sample: TarSample, record: GroundingRecord | None) -> bool:
        """Count the image's size; returns whether the sample has a valid image or a link to one."""
        counts, where = self.counts, f"{self._name}/{sample.key}"
        image = image_of(sample)
        if image is None and "link" in sample.files:
            counts.numbers["linked_images"] += 1
            if record is not None:
                self._sizes.append(record.image_size)
            return True
        if image is None:
            counts.problem("no_image", f"{where}: no image")
            return False
        try:
            size = image_size(image[1])
        except ImageError as error:
            counts.problem(error.reason, f"{where}: {error}")
            return False
        self._sizes.append(size)
        if record is not None and size != record.image_size:
            counts.problem("image_size_differs", f"{where}: {size}, its record states {record.image_size}")
        return True

    def _record(self, record: GroundingRecord, where: str) -> None:
        counts, labelled = self.counts, [r for r in record.regions if not r.ignore]
        counts.table("datasets", record.dataset)
        counts.table("kinds", record.kind)
        counts.numbers["with_boxes"] += bool(labelled)
        counts.numbers["without_boxes"] += not labelled
        counts.numbers["boxes"] += len(labelled)
        counts.numbers["ignore_regions"] += len(record.regions) - len(labelled)
        counts.numbers["uncertain_phrases"] += len(record.uncertain)
        counts.numbers["samples_with_verified_absent"] += record.verified_absent is not None
        self._caption(record.caption)
        self._values["boxes_per_image"].append(len(labelled))
        outside = sum(reaches_outside(region.box, record.image_size) for region in record.regions)
        if outside:
            counts.problems["box_outside_image"] += outside
            counts.note(f"{where}: {outside} boxes outside {record.image_size}")
        for region in labelled:
            counts.phrases[region.phrase.lower()] += 1
            counts.table("annotators", region.annotator or "human")
            self._values["phrase_words"].append(len(region.phrase.split()))
            self._boxes.append(region.box)
            self._box_images.append(record.image_size)
            if region.score is not None:
                self._values["scores"].append(region.score)

    def _caption(self, caption: str | None) -> None:
        if caption:
            self.counts.numbers["captions"] += 1
            self._values["caption_words"].append(len(caption.split()))

    def _crawl_sample(self, sample: TarSample) -> str:
        caption, reason = caption_of(sample)
        if caption is None:
            self.counts.problem(reason or "no_caption", f"{self._name}/{sample.key}: {reason}")
        self._caption(caption)
        rank = sample_rank(self._name, sample.key, False)
        if self._image(sample, None) and self._pictures.wants(rank) and (image := image_of(sample)) is not None:
            size = self._sizes[-1]
            record = GroundingRecord(
                key=sample.key, dataset="crawl", kind="grounding" if caption else "detection", image_size=size,
                caption=caption or None,
            )  # fmt: skip
            shown = record_sample(self._name, sample.key, record)
            self._pictures.add(Picture(rank, self._name, sample.key, shown, image[1]))
        return ""


def _why_refused(data: bytes) -> str:
    """Reason under which an invalid record is counted."""
    try:
        record: dict[str, Any] = json.loads(data)
        caption, regions = record.get("caption") or "", record["regions"]
        if record["kind"] == "grounding" and not caption:
            return "no_caption"
        spans = [s for r in regions for s in r.get("tokens_positive", ())] + list(record.get("uncertain", ()))
        if any(not 0 <= start < end <= len(caption) for start, end in spans):
            return "span_outside_caption"
        if any(not (r["box"][2] > r["box"][0] and r["box"][3] > r["box"][1]) for r in regions):
            return "box_without_area"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        pass
    return "bad_record"


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}".lstrip(": ")
