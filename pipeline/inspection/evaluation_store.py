"""A model's detections on an evaluation set, judged against its gold boxes, as samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from pipeline.config import EvaluationProtocol
from pipeline.data.records import GroundingRecord, Span
from pipeline.errors import InputError
from pipeline.evaluation.calibration import is_judged
from pipeline.evaluation.compare import Evaluated
from pipeline.evaluation.label_qa import best_f1, judge_labels
from pipeline.evaluation.predictions import Detections, read_predictions
from pipeline.evaluation.protocols import CAPTION_PROTOCOLS, named_phrases, own_phrases
from pipeline.inspection.samples import Sample, ShownBox, TrainingStore, Verdict
from pipeline.io.hashing import digest_file, digest_json
from pipeline.io.paths import is_url, resolve_path

PER_NAME = 2
"""Number of a name's images among the worst."""


class EvaluationStore:
    """One set of an evaluation folder (:class:`pipeline.inspection.samples.SampleStore`).

    A detection is right if it is matched to gold at IoU 0.5, wrong if it is not and its class is
    known to be present or absent, else ignored. Gold is missed if no right detection has at least
    the score ``least``, that of the best F1 rounded down to a hundredth.

    Args:
        folder: of evaluate. name: of the set. shards: the set's; default: where they were.

    Raises:
        InputError: no such set, or its shards are missing or others than were evaluated.
    """

    def __init__(self, folder: str | Path, name: str, shards: Sequence[str] = ()) -> None:
        evaluated = Evaluated.read(folder)
        if name not in evaluated.sets:
            raise InputError(f"{folder}: found no set {name}; want one of {', '.join(sorted(evaluated.sets))}")
        self.tables = evaluated.match_tables(name)
        paths = list(shards) or [resolve_path(folder, path) for path in self.tables.shards]
        if not paths:
            raise InputError(
                f"{folder}: written by an earlier version; name the set's shards (--set-shards {name}=...)"
            )
        if missing := [path for path in paths if not is_url(path) and not Path(path).is_file()]:
            raise InputError(f"{missing[0]}: no such file; want the shards of {name} (--set-shards {name}=...)")
        if digest_json([digest_file(path) for path in paths]) != self.tables.gold:
            raise InputError(f"{folder}: {name} was evaluated on other shards than {paths[0]}; want those")
        self._training = TrainingStore(paths)
        self.image, self.shards = self._training.image, self._training.shards
        self._folder, self._name = Path(folder), name
        self._judged = is_judged(self.tables.matches)
        self._starts = np.cumsum([0, *self._training.records.counts])
        self.least = math.floor(100 * (best_f1(judge_labels(self.tables)) or 0.0) + 1e-9) / 100
        self.samples = lru_cache(maxsize=4)(self._samples)

    def place(self, image: int) -> tuple[int, int]:
        """(shard, row) of the set's image with this number."""
        shard = int(np.searchsorted(self._starts, image, side="right")) - 1
        return shard, image - int(self._starts[shard])

    def _samples(self, shard: int) -> list[Sample]:
        counts, name = self._training.records.counts, self.shards[shard]
        path = self._folder / "predictions" / f"{self._name}--{name}.parquet"
        predictions = read_predictions(str(path), counts[shard])
        return [self._sample(shard, row, detections) for row, detections in enumerate(predictions)]

    def _sample(self, shard: int, row: int, detections: Detections) -> Sample:
        record = self._training.records.record(shard, row)
        texts, gold = self._gold(record)
        boxes: list[ShownBox] = []
        m, image = self.tables.matches, int(self._starts[shard]) + row
        first, last = np.searchsorted(m.image, [image, image + 1])
        order = np.argsort(-detections.scores, kind="stable").tolist()
        judged, correct = self._judged, m.tp[:, 0]
        for n in range(first, last):  # the evidence has detections in this order, without some
            label, score = int(m.label[n]), float(m.score[n])
            while order and (detections.labels[order[0]], float(detections.scores[order[0]])) != (label, score):
                order.pop(0)
            if not order:
                raise InputError(f"{self._folder}: predictions and evidence of {record.key} differ; run evaluate again")
            text, spans = texts[label]
            verdict: Verdict = ("right" if correct[n] else "wrong") if judged[n] else ""
            corners = tuple(detections.boxes[order.pop(0)].tolist())
            boxes.append(ShownBox(corners, text, score, spans, "kept" if verdict else "ignored", verdict))
        scores = iter(m.gold_score[slice(*np.searchsorted(m.gold_image, [image, image + 1]))].tolist())
        for box in gold:
            found = box.status == "ignored" or next(scores) >= self.least
            boxes.append(box if found else ShownBox(box.box, box.phrase, None, box.spans, "gold", "missed"))
        return Sample(self.shards[shard], record.key, record.image_size, record.caption, tuple(boxes))

    def _gold(self, record: GroundingRecord) -> tuple[list[tuple[str, tuple[Span, ...]]], list[ShownBox]]:
        """(text and spans of each label, gold boxes in the order of the evidence, crowds among them)."""
        if self.tables.protocol in CAPTION_PROTOCOLS:
            phrases = named_phrases(record, cast(EvaluationProtocol, self.tables.protocol))
            return [(p.phrase, (p.span,)) for p in phrases], [
                ShownBox(tuple(b), p.phrase, None, (p.span,), "gold") for p in phrases for b in p.boxes
            ]
        names = self.tables.names
        if self.tables.protocol == "cgf1":
            names = tuple(own_phrases(record))
        boxes = [
            ShownBox(r.box, r.phrase, None, r.tokens_positive, "ignored" if r.ignore else "gold")
            for r in record.regions
            if r.phrase in names
        ]
        return [(name, ()) for name in names], boxes

    def worst(self, limit: int) -> dict[str, list[tuple[int, int]]]:
        """(shard, row) of images with the largest "missed" gold, and with the "wrong" detections of
        highest score; both with at least the score ``least``, up to PER_NAME images of a name.
        """
        m = self.tables.matches
        missed = np.flatnonzero(~(m.gold_score >= self.least))
        wrong = np.flatnonzero(is_judged(m) & ~m.tp[:, 0] & (m.score >= self.least))
        missed = missed[np.argsort(-m.gold_area[missed], kind="stable")]
        wrong = wrong[np.argsort(-m.score[wrong], kind="stable")]
        return {
            "missed": self._images(m.gold_image[missed], m.gold_label[missed], limit),
            "wrong": self._images(m.image[wrong], m.label[wrong], limit),
        }

    def _images(self, images: np.ndarray, labels: np.ndarray, limit: int) -> list[tuple[int, int]]:
        of_name: dict[int, int] = {}
        chosen: dict[int, None] = {}
        for image, label in zip(images.tolist(), labels.tolist(), strict=True):
            label = label if self.tables.names else image  # the labels of captions are no classes
            if image not in chosen and of_name.get(label, 0) < PER_NAME:
                of_name[label] = of_name.get(label, 0) + 1
                chosen[image] = None
            if len(chosen) == limit:
                break
        return [self.place(image) for image in chosen]


def class_rows(store: EvaluationStore) -> list[dict[str, Any]]:
    """Of each class name that has gold or wrong detections: ``name``, ``gold`` boxes, ``right`` and
    ``wrong`` detections and ``recall`` in percent, at the score ``least``.
    """
    m, names = store.tables.matches, store.tables.names
    shown = is_judged(m) & (m.score >= store.least)
    gold, found, right, wrong = (
        np.bincount(labels, minlength=len(names)).tolist()
        for labels in (
            m.gold_label, m.gold_label[m.gold_score >= store.least], m.label[shown & m.tp[:, 0]],
            m.label[shown & ~m.tp[:, 0]],
        )
    )  # fmt: skip
    return [
        {"name": name, "gold": g, "right": r, "wrong": w, "recall": 100.0 * f / g if g else None}
        for name, g, f, r, w in zip(names, gold, found, right, wrong, strict=True)
        if g or w
    ]
