"""An evaluation set: its shards, what it is asked, and its gold beside a model's predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import EvaluateConfig
from pipeline.data.class_names import needed_class_names
from pipeline.data.records import GroundingRecord
from pipeline.data.training_shards import ShardSet
from pipeline.errors import InputError
from pipeline.evaluation.frequencies import Frequencies
from pipeline.evaluation.metrics import ImageResult
from pipeline.evaluation.predictions import Found
from pipeline.evaluation.protocols import CAPTION_PROTOCOLS, SetSpec, named_phrases
from pipeline.io.paths import stem


@dataclass(frozen=True)
class EvaluationSet:
    """shards: training shards with human labels. A job of ``job_names`` for each."""

    spec: SetSpec
    shards: tuple[str, ...]
    records: ShardSet

    @classmethod
    def open(cls, name: str, shards: Sequence[str], config: EvaluateConfig) -> EvaluationSet:
        """Index the shards and choose the protocol.

        Raises:
            InputError: no records, two shards of one name, a protocol that does not suit the labels, no class names.
        """
        if not re.fullmatch(r"[\w.-]+", name):
            raise InputError(
                f"evaluation set {name!r}: want a name of letters, digits, - _ and .: files are called by it"
            )
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
                    f"evaluation set {name}: {shards[shard]} holds {other.kind} records of {other.dataset}, others hold {first.kind} "
                    f"records of {first.dataset}; want one set"
                )
        captions = first.kind == "grounding"
        protocol = config.protocols.get(name, "flickr" if captions else "detection")
        if (protocol in CAPTION_PROTOCOLS) != captions:
            fitting = "flickr or refcoco" if captions else "detection, coco, lvis or odinw"
            raise InputError(
                f"evaluation set {name}: protocol {protocol} does not suit {first.kind} records; want {fitting}"
            )
        names: tuple[str, ...] = ()
        if not captions:
            found = needed_class_names({name: shards}).get(first.dataset, ())
            if len(found) > 1:
                raise InputError(
                    f"evaluation set {name}: its shards lie in folders whose {first.dataset}.dataset.json differ in label_space; want one"
                )
            (names,) = found
        return cls(SetSpec(name, protocol, names), tuple(shards), records)

    @property
    def job_names(self) -> list[str]:
        """What a shard's predictions are called."""
        return [f"{self.spec.name}--{stem(s)}" for s in self.shards]

    def results(
        self, predictions: Sequence[Sequence[Found]], about: Frequencies
    ) -> tuple[list[ImageResult], list[str], list[list[str]]]:
        """(gold and detections of each image, its key, what its gold labels are called).

        predictions: of every record of every shard.
        """
        index = {n: i for i, n in enumerate(self.spec.names)}
        results, keys, phrases = [], [], []
        for shard, found in enumerate(predictions):
            for row, one in enumerate(found):
                record = self.records.record(shard, row)
                try:
                    result, names = (
                        self._captioned(record, one) if self.spec.captions else self._named(record, one, index, about)
                    )
                except KeyError as error:
                    raise InputError(
                        f"{self.records.name(shard, row)}: class name {error} is not in the label space of {self.spec.name}"
                    ) from None
                results.append(result)
                keys.append(record.key)
                phrases.append(names)
        return results, keys, phrases

    def _captioned(self, record: GroundingRecord, found: Found) -> tuple[ImageResult, list[str]]:
        named = named_phrases(record, self.spec.protocol)
        counts = [len(n.boxes) for n in named]
        result = ImageResult(
            size=record.image_size,
            gold_boxes=np.concatenate([np.zeros((0, 4)), *(n.boxes for n in named)]),
            gold_labels=np.repeat(np.arange(len(named)), counts),
            gold_ignore=np.zeros(sum(counts), bool),
            boxes=found.boxes,
            labels=found.labels,
            scores=found.scores,
        )
        return result, [n.phrase for n in named]

    def _named(
        self, record: GroundingRecord, found: Found, index: dict[str, int], about: Frequencies
    ) -> tuple[ImageResult, list[str]]:
        absent, open_ = record.verified_absent, record.not_exhaustive
        if absent is None and open_:  # what lost its box is not known to be absent
            absent = tuple(name for name in self.spec.names if name not in open_)
        result = ImageResult(
            size=record.image_size,
            gold_boxes=np.array([r.box for r in record.regions], np.float64).reshape(-1, 4),
            gold_labels=np.array([index[r.phrase] for r in record.regions], np.int64),
            gold_ignore=np.array([r.ignore for r in record.regions], bool),
            boxes=found.boxes,
            labels=found.labels,
            scores=found.scores,
            absent=None if absent is None else np.array([index[n] for n in absent], np.int64),
            not_exhaustive=np.array(
                [index[n] for n in about.not_exhaustive.get(record.key, record.not_exhaustive or ())], np.int64
            ),
        )
        return result, []
