"""Average precision by pycocotools, and recall of a phrase's best boxes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.filtering.box_matching import xywh


@dataclass(frozen=True)
class ImageResult:
    """One image's gold and detections. Boxes (n, 4) absolute xyxy; labels index the class names.

    ``gold_ignore`` marks crowds: neither false negatives nor, for their matches, false positives.
    In federated sets, ``absent`` are the labels verified absent (None: all without gold), and
    ``not_exhaustive`` those not annotated exhaustively.
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
    """(n, m) IoU of xyxy boxes, without the +1 that the detector adds to sides (GLIP spec 13)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    iou: np.ndarray = inner / np.maximum(area_a[:, None] + area_b[None, :] - inner, 1e-12)
    return iou


@dataclass(frozen=True)
class Queries:
    """The q (image, label) pairs with gold boxes; by the protocol cgf1 also those known to be absent.

    image, label (q,), ascending; boxes (q,): number of gold boxes. first, first_merged (q,): rank, from 0, of
    the best detection that matches any gold box, and of the best that matches the box around all of
    them; NEVER if none does.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    first: np.ndarray
    first_merged: np.ndarray


NEVER = 1 << 14
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""Ranges of area in COCOeval, in pixels, inclusive."""


def queries_of(results: Sequence[ImageResult], *, absent: bool = False) -> Queries:
    """Rank detections by Flickr30k Entities' two protocols, any-box and merged-boxes in MDETR.

    A detection matches if its IoU with any gold box of the name, or with the box around all of
    them, is at least 0.5. Names without gold in the image are no queries, but for absent ones with
    ``absent``.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    for number, result in enumerate(results):
        for label in np.unique(result.gold_labels[~result.gold_ignore]):
            gold = result.gold_boxes[(result.gold_labels == label) & ~result.gold_ignore]
            merged = np.concatenate([gold[:, :2].min(axis=0), gold[:, 2:].max(axis=0)])[None]
            detected = result.labels == label
            best = result.boxes[detected][np.argsort(-result.scores[detected], kind="stable")]
            first, first_merged = (_first(iou_matrix(best, g).max(axis=1) >= 0.5) for g in (gold, merged))
            rows.append((number, int(label), len(gold), first, first_merged))
        if absent and result.absent is not None:
            rows += [(number, int(label), 0, NEVER, NEVER) for label in result.absent]
    rows.sort()
    return Queries(*np.array(rows, np.int64).reshape(-1, 5).T)


def _first(matched: np.ndarray) -> int:
    return min(int(np.argmax(matched)), NEVER - 1) if matched.any() else NEVER


def coco_ap(results: Sequence[ImageResult], names: Sequence[str], max_detections: int = 100) -> dict[str, float | None]:
    """pycocotools' metrics in percent, means over the classes that have gold boxes.

    Returns:
        ap, ap50, ap75; ap_small, ap_medium, ap_large by area of the box (SIZES), as records have no
        masks; ar_1, ar_10, ar: recall with at most 1, 10, ``max_detections`` detections per class
        and image; ar_small, ar_medium, ar_large. Sizes without gold are omitted; without any gold
        ap, ap50 and ap75 are None.
    """
    annotations: list[dict[str, Any]] = []
    detections = [np.zeros((0, 7))]
    for image_id, r in enumerate(results, start=1):
        for bbox, label, ignore in zip(xywh(r.gold_boxes).tolist(), r.gold_labels, r.gold_ignore, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": int(label) + 1, "bbox": bbox,
                    "area": bbox[2] * bbox[3], "iscrowd": int(ignore),
                }
            )  # fmt: skip
        detections.append(np.column_stack([np.full(len(r.labels), image_id), xywh(r.boxes), r.scores, r.labels + 1]))
    detected = np.concatenate(detections)
    areas = np.array([a["area"] for a in annotations if not a["iscrowd"]])
    if not len(areas):
        return dict.fromkeys(("ap", "ap50", "ap75"))
    if not len(detected):
        sizes = [size for size, (low, high) in SIZES.items() if ((areas >= low) & (areas <= high)).any()]
        by_size = (f"{kind}_{size}" for size in sizes for kind in ("ap", "ar"))
        return dict.fromkeys(("ap", "ap50", "ap75", "ar_1", "ar_10", "ar", *by_size), 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        gold = COCO()
        gold.dataset = {
            "info": {},
            "images": [{"id": i, "height": r.size[0], "width": r.size[1]} for i, r in enumerate(results, start=1)],
            "categories": [{"id": i, "name": n} for i, n in enumerate(names, start=1)],
            "annotations": annotations,
        }
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(detected), "bbox")
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    # as COCOeval.summarize, which has AP50 and AP75 at 100 detections only
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def mean(values: np.ndarray) -> float | None:
        values = values[values > -1]
        return 100.0 * float(values.mean()) if values.size else None

    all_areas = precision[:, :, :, 0, 2]
    means = {"ap": mean(all_areas), "ap50": mean(all_areas[0]), "ap75": mean(all_areas[5])}
    means |= {f"ar{suffix}": mean(recall[:, :, 0, i]) for i, suffix in enumerate(("_1", "_10", ""))}
    for i, size in enumerate(SIZES, start=1):
        means |= {f"ap_{size}": mean(precision[:, :, :, i, 2]), f"ar_{size}": mean(recall[:, :, i, 2])}
    return {name: value for name, value in means.items() if value is not None}
