"""Average precision by pycocotools, and recall of the best boxes of a phrase."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@dataclass(frozen=True)
class ImageResult:
    """One image's gold and detections. Boxes (n, 4) absolute xyxy; labels index the set's class names.

    ``gold_ignore`` marks crowds: not counted as missed, and not as false if found. Federated sets: ``absent`` are the labels
    that are known not to be in the image (None: all that have no gold), ``not_exhaustive`` those with more than is boxed.
    """

    size: tuple[int, int]
    gold_boxes: np.ndarray
    gold_labels: np.ndarray
    gold_ignore: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    absent: np.ndarray | None = None
    not_exhaustive: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of xyxy boxes, without the detector's +1 (GLIP spec 13)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    return inner / np.maximum(area_a[:, None] + area_b[None, :] - inner, 1e-12)


@dataclass(frozen=True)
class Queries:
    """What was asked for by a name that is there: (image, label) pairs, q of them.

    image, label, boxes (q,): whose, and how many gold boxes there are. first, first_merged (q,): place, from 0, of the first
    detection that fits any of them, and of the first that fits the box around all of them; NEVER if none does.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    first: np.ndarray
    first_merged: np.ndarray


NEVER = 1 << 14
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""COCOeval's areas in pixels, both ends included."""


def queries_of(results: Sequence[ImageResult], iou: float = 0.5) -> Queries:
    """Flickr30k Entities' two protocols (MDETR's evaluation names them any-box and merged-boxes): a detection fits if its
    IoU with any gold box of the name, or with the one box around them all, is at least ``iou``.

    Names that are not in the image are not asked.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    for number, result in enumerate(results):
        for label in np.unique(result.gold_labels[~result.gold_ignore]):
            gold = result.gold_boxes[(result.gold_labels == label) & ~result.gold_ignore]
            merged = np.concatenate([gold[:, :2].min(axis=0), gold[:, 2:].max(axis=0)])[None]
            mine = result.labels == label
            best = result.boxes[mine][np.argsort(-result.scores[mine], kind="stable")]
            first, first_merged = (_first(np.asarray((iou_matrix(best, g) >= iou).any(axis=1))) for g in (gold, merged))
            rows.append((number, int(label), len(gold), first, first_merged))
    return Queries(*np.array(rows, np.int64).reshape(-1, 5).T)


def _first(fits: np.ndarray) -> int:
    return min(int(np.argmax(fits)), NEVER - 1) if fits.any() else NEVER


def recall_at_k(results: Sequence[ImageResult], ks: Sequence[int] = (1, 5, 10), iou: float = 0.5) -> dict[str, float]:
    """Share in percent of (image, named object) pairs of which one of the ``k`` best boxes for the name fits any gold box.

    See :func:`queries_of`.
    """
    queries = queries_of(results, iou)
    asked = len(queries.image)
    return {f"recall_at_{k}": 100.0 * float((queries.first < k).sum()) / max(asked, 1) for k in ks} | {"queries": asked}


def coco_ap(results: Sequence[ImageResult], names: Sequence[str], max_detections: int = 100) -> dict[str, float]:
    """Averages in percent over all classes that have gold boxes, as pycocotools computes them.

    Returns:
        ap, ap50, ap75; ap_small, ap_medium, ap_large (boxes of up to 32x32, up to 96x96, and above; a box's own area, as records
        hold no masks); ar_1, ar_10, ar (recall with so many detections a class and image, the last with ``max_detections``),
        ar_small, ar_medium, ar_large. A size that has no gold boxes is left out.
    """
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id, result in enumerate(results, start=1):
        for box, label, ignore in zip(result.gold_boxes, result.gold_labels, result.gold_ignore, strict=True):
            x1, y1, x2, y2 = (float(v) for v in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignore),
                }
            )
        for box, label, score in zip(result.boxes, result.labels, result.scores, strict=True):
            x1, y1, x2, y2 = (float(v) for v in box)
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                }
            )
    if not annotations or not detections:
        areas = np.array([a["area"] for a in annotations if not a["iscrowd"]])
        there = [size for size, (low, high) in SIZES.items() if ((areas >= low) & (areas <= high)).any()]
        of_sizes = (f"{kind}_{size}" for size in there for kind in ("ap", "ar"))
        return dict.fromkeys(("ap", "ap50", "ap75", "ar_1", "ar_10", "ar", *of_sizes), 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        gold = COCO()
        gold.dataset = {
            "info": {},
            "images": [{"id": i, "height": r.size[0], "width": r.size[1]} for i, r in enumerate(results, start=1)],
            "categories": [{"id": i, "name": n} for i, n in enumerate(names, start=1)],
            "annotations": annotations,
        }
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(detections), "bbox")
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    # COCOeval.summarize reads AP50 and AP75 at 100 detections only, so the means are taken here as it takes them.
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def mean(values: np.ndarray) -> float | None:
        values = values[values > -1]
        return 100.0 * float(values.mean()) if values.size else None

    whole = precision[:, :, :, 0, 2]
    found = {"ap": mean(whole), "ap50": mean(whole[0]), "ap75": mean(whole[5])}
    found |= {f"ar{end}": mean(recall[:, :, 0, i]) for i, end in enumerate(("_1", "_10", ""))}
    for i, size in enumerate(SIZES, start=1):
        found |= {f"ap_{size}": mean(precision[:, :, :, i, 2]), f"ar_{size}": mean(recall[:, :, i, 2])}
    return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0} | {k: v for k, v in found.items() if v is not None}
