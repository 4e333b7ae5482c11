"""Predictions of a shard as a Parquet table, and of a set as COCO results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.annotators.base import RegionPredictions
from pipeline.evaluation.metrics import ImageResult
from pipeline.io.atomic import HashingFile
from pipeline.io.tables import read_table

PREDICTIONS = pa.schema(
    [pa.field(name, pa.int32(), nullable=False) for name in ("row", "label")]
    + [pa.field(name, pa.float32(), nullable=False) for name in ("x1", "y1", "x2", "y2", "score")]
)
"""row: of the record in its shard. label: index of a class name or of named_phrases."""


@dataclass(frozen=True)
class Detections:
    """Detections of an image by falling score: labels, scores (n,); boxes (n, 4) float64 xyxy."""

    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def predictions_table(rows: Sequence[RegionPredictions]) -> pa.Table:
    """The detections of a shard's images as one table."""
    sizes = [len(r.score) for r in rows]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(r.boxes.reshape(-1, 4) for r in rows)])
    columns = {
        "row": np.repeat(np.arange(len(rows)), sizes),
        "label": np.concatenate([np.zeros(0, np.int64), *(r.phrase for r in rows)]),
        **dict(zip(("x1", "y1", "x2", "y2"), boxes.T, strict=True)),
        "score": np.concatenate([np.zeros(0, np.float32), *(r.score for r in rows)]),
    }
    return pa.table({f.name: pa.array(columns[f.name], f.type) for f in PREDICTIONS}, schema=PREDICTIONS)


def read_predictions(path: str, records: int) -> list[Detections]:
    """The detections of each of the shard's ``records`` records."""
    table = read_table(path, PREDICTIONS)
    columns = {name: table[name].to_numpy() for name in PREDICTIONS.names}
    boxes = np.stack([columns[c] for c in ("x1", "y1", "x2", "y2")], axis=1).astype(np.float64)
    edges = np.searchsorted(columns["row"], np.arange(1, records))
    parts = [np.split(a, edges) for a in (columns["label"].astype(np.int64), boxes, columns["score"])]
    return [Detections(*p) for p in zip(*parts, strict=True)] if records else []


def write_coco(file: HashingFile, results: Iterable[ImageResult], keys: Iterable[str]) -> None:
    """Write COCO results; ``image_id`` is the record's key, ``category_id`` the label + 1."""
    separator = b"[\n "
    for key, r in zip(keys, results, strict=True):
        for (x1, y1, x2, y2), label, score in zip(r.boxes.tolist(), r.labels, r.scores, strict=True):
            bbox = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
            row = {"image_id": key, "category_id": int(label) + 1, "bbox": bbox, "score": round(float(score), 5)}
            file.write(separator + json.dumps(row, sort_keys=True).encode())
            separator = b",\n "
    file.write(b"[]\n" if separator == b"[\n " else b"\n]\n")
