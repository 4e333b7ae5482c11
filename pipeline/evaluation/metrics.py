"""Average precision by pycocotools, and recall of the best boxes of a phrase."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


@dataclass(frozen=True)
class ImageResult:
    """One image's gold and detections. Boxes (n, 4) absolute xyxy; labels index the set's class names.

    ``gold_ignore`` marks crowds: not counted as missed, and not as false if found.
    """

    size: tuple[int, int]
    gold_boxes: np.ndarray
    gold_labels: np.ndarray
    gold_ignore: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of xyxy boxes, without the detector's +1 (GLIP spec 13)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    return inner / np.maximum(area_a[:, None] + area_b[None, :] - inner, 1e-12)


def recall_at_k(results: Sequence[ImageResult], ks: Sequence[int] = (1, 5, 10), iou: float = 0.5) -> dict[str, float]:
    """Share in percent of (image, named object) pairs of which one of the ``k`` best boxes for the name fits.

    Flickr30k Entities' "any box" rule: a box fits if its IoU with any gold box of that name is at least ``iou``.
    Names that are not in the image are not asked.
    """
    hits, asked = np.zeros(len(ks)), 0
    for result in results:
        for label in np.unique(result.gold_labels[~result.gold_ignore]):
            gold = result.gold_boxes[(result.gold_labels == label) & ~result.gold_ignore]
            mine = result.labels == label
            best = result.boxes[mine][np.argsort(-result.scores[mine], kind="stable")[: max(ks)]]
            fits = np.asarray((iou_matrix(best, gold) >= iou).any(axis=1))
            hits += [bool(fits[:k].any()) for k in ks]
            asked += 1
    return {f"recall_at_{k}": 100.0 * h / max(asked, 1) for k, h in zip(ks, hits, strict=True)} | {"queries": asked}


def coco_ap(results: Sequence[ImageResult], names: Sequence[str], max_detections: int = 100) -> dict[str, float]:
    """AP, AP50 and AP75 in percent over all classes that have gold boxes, as pycocotools computes them."""
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
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
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
    precision = evaluation.eval["precision"][:, :, :, 0, 2]

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return 100.0 * float(values.mean()) if values.size else 0.0

    return {"ap": mean(precision), "ap50": mean(precision[0]), "ap75": mean(precision[5])}
