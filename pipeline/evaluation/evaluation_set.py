"""An evaluation set: its shards and protocol, and its gold paired with a model's predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import EvaluateConfig
from pipeline.data.class_names import class_prompts, needed_class_names
from pipeline.data.records import ClassPrompt, GroundingRecord
from pipeline.data.training_shards import ShardSet
from pipeline.errors import InputError
from pipeline.evaluation.frequencies import Frequencies
from pipeline.evaluation.metrics import ImageResult
from pipeline.evaluation.predictions import Detections
from pipeline.evaluation.protocols import CAPTION_PROTOCOLS, SetSpec, named_phrases, own_phrases, present_and_absent
from pipeline.io.paths import stem


@dataclass(frozen=True)
class EvaluationSet:
    """Human-labelled training shards, predicted shard by shard and measured by one protocol."""

    spec: SetSpec
    shards: tuple[str, ...]
    records: ShardSet

    @classmethod
    def open(cls, name: str, shards: Sequence[str], config: EvaluateConfig) -> EvaluationSet:
        """Index the shards and choose the protocol.

        Raises:
            InputError: a name that is no file name; no records, or of several kinds or data sets;
                two shards of one name; a protocol that does not suit the labels; no class names.
        """
        if not re.fullmatch(r"[\w.-]+", name):
            raise InputError(f"evaluation set {name!r}: want a name of letters, digits, - _ and ., for file names")
        records = ShardSet(shards)
        first = next((records.record(s, 0) for s, n in enumerate(records.counts) if n), None)
        if first is None:
            raise InputError(f"evaluation set {name}: its shards hold no records")
        if len({stem(s) for s in shards}) < len(shards):
            raise InputError(f"evaluation set {name}: two of its shards have the same name; want distinct ones")
        for shard, count in enumerate(records.counts):
            other = records.record(shard, 0) if count else first
            if other.kind != first.kind or (first.kind == "detection" and other.dataset != first.dataset):
                raise InputError(
                    f"evaluation set {name}: {shards[shard]} holds {other.kind} records of {other.dataset}, others "
                    f"hold {first.kind} records of {first.dataset}; want one set"
                )
        captions = first.kind == "grounding"
        protocol = config.protocols.get(name, "flickr" if captions else "detection")
        if protocol != "cgf1" and (protocol in CAPTION_PROTOCOLS) != captions:
            fitting = "flickr, refcoco or cgf1" if captions else "detection, coco, lvis, odinw or cgf1"
            raise InputError(
                f"evaluation set {name}: protocol {protocol} does not suit {first.kind} records; want {fitting}"
            )
        names: tuple[str, ...] = ()
        prompts: dict[str, ClassPrompt] = {}
        if protocol == "cgf1":
            _check_absence(name, records)
        elif not captions:
            spaces = needed_class_names({name: shards}).get(first.dataset, ())
            if len(spaces) > 1:
                raise InputError(
                    f"evaluation set {name}: the {first.dataset}.dataset.json beside its shards differ in label_space; "
                    "want one"
                )
            (names,) = spaces
            prompts = class_prompts(shards, first.dataset)
        spec = SetSpec(name, protocol, names, tuple(prompts.get(n, ClassPrompt()) for n in names if prompts))
        return cls(spec, tuple(shards), records)

    @property
    def job_names(self) -> list[str]:
        """Names of the shards' jobs and prediction files."""
        return [f"{self.spec.name}--{stem(s)}" for s in self.shards]

    def results(
        self, predictions: Sequence[Sequence[Detections]], frequencies: Frequencies
    ) -> tuple[list[ImageResult], list[str], list[list[str]]]:
        """(gold and detections, key, names of the labels, if they are its own phrases) of each image.

        predictions: of every record of every shard.

        Raises:
            InputError: a class name is not in the set's label space.
        """
        index = {n: i for i, n in enumerate(self.spec.names)}
        results, keys, phrases = [], [], []
        for shard, of_shard in enumerate(predictions):
            for row, detections in enumerate(of_shard):
                record, names = self.records.record(shard, row), list[str]()
                try:
                    if self.spec.protocol == "cgf1":
                        result, names = _presence_result(record, detections)
                    elif self.spec.own_phrases:
                        result, names = self._caption_result(record, detections)
                    else:
                        result = self._class_result(record, detections, index, frequencies)
                except KeyError as error:
                    name = self.records.name(shard, row)
                    raise InputError(
                        f"{name}: class name {error} is not in the label space of {self.spec.name}"
                    ) from None
                results.append(result)
                keys.append(record.key)
                phrases.append(names)
        return results, keys, phrases

    def _caption_result(self, record: GroundingRecord, detections: Detections) -> tuple[ImageResult, list[str]]:
        phrases = named_phrases(record, self.spec.protocol)
        counts = [len(p.boxes) for p in phrases]
        result = ImageResult(
            size=record.image_size,
            gold_boxes=np.concatenate([np.zeros((0, 4)), *(p.boxes for p in phrases)]),
            gold_labels=np.repeat(np.arange(len(phrases)), counts),
            gold_ignore=np.zeros(sum(counts), bool),
            **vars(detections),
        )
        return result, [p.phrase for p in phrases]

    def _class_result(
        self, record: GroundingRecord, detections: Detections, index: dict[str, int], frequencies: Frequencies
    ) -> ImageResult:
        absent, not_exhaustive = record.verified_absent, record.not_exhaustive or ()
        if absent is None and not_exhaustive:  # classes that lost boxes are not known to be absent
            absent = tuple(name for name in self.spec.names if name not in not_exhaustive)
        not_exhaustive = frequencies.not_exhaustive.get(record.key, not_exhaustive)
        return ImageResult(
            size=record.image_size,
            gold_boxes=np.array([r.box for r in record.regions], np.float64).reshape(-1, 4),
            gold_labels=np.array([index[r.phrase] for r in record.regions], np.int64),
            gold_ignore=np.array([r.ignore for r in record.regions], bool),
            **vars(detections),
            absent=None if absent is None else np.array([index[n] for n in absent], np.int64),
            not_exhaustive=np.array([index[n] for n in not_exhaustive], np.int64),
        )


def _presence_result(record: GroundingRecord, detections: Detections) -> tuple[ImageResult, list[str]]:
    """Labels index the image's phrases, present and absent ones, in alphabetical order."""
    names, (_, absent) = own_phrases(record), present_and_absent(record)
    index = {name: i for i, name in enumerate(names)}
    regions = [region for region in record.regions if region.phrase in index]
    result = ImageResult(
        size=record.image_size,
        gold_boxes=np.array([r.box for r in regions], np.float64).reshape(-1, 4),
        gold_labels=np.array([index[r.phrase] for r in regions], np.int64),
        gold_ignore=np.array([r.ignore for r in regions], bool),
        **vars(detections),
        absent=np.array([index[name] for name in absent], np.int64),
    )
    return result, names


def _check_absence(name: str, records: ShardSet) -> None:
    """Check that a set has phrases of both kinds.

    Raises:
        InputError: it has not.
    """
    found = [False, False]
    for shard, count in enumerate(records.counts):
        for row in range(count):
            found = [a or bool(b) for a, b in zip(found, present_and_absent(records.record(shard, row)), strict=True)]
            if all(found):
                return
    raise InputError(
        f"evaluation set {name}: found no {'absent' if found[0] else 'present'} phrase; want records with regions and "
        "with verified_absent for the protocol cgf1"
    )
