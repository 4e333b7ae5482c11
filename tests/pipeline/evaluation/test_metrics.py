"""AP equals pycocotools' own summary; recall equals a case worked by hand."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.evaluation.metrics import ImageResult, coco_ap, iou_matrix, queries_of
from tests.pipeline.evaluation.test_matching import image


def result(gold, found):
    gold, found = list(gold), list(found)
    return ImageResult(
        size=(100, 100),
        gold_boxes=np.array([g[0] for g in gold], float).reshape(-1, 4),
        gold_labels=np.array([g[1] for g in gold], int),
        gold_ignore=np.array([len(g) > 2 and g[2] for g in gold], bool),
        boxes=np.array([f[0] for f in found], float).reshape(-1, 4),
        labels=np.array([f[1] for f in found], int),
        scores=np.array([f[2] for f in found], float),
    )


def recall_at_k(results, ks=(1, 5, 10)):
    queries = queries_of(results)
    total = len(queries.image)
    return {f"recall_at_{k}": 100.0 * float((queries.first < k).sum()) / max(total, 1) for k in ks} | {"queries": total}


def test_recall_by_hand():
    a, b, far = (0, 0, 10, 10), (50, 50, 70, 70), (80, 0, 99, 9)
    results = [
        result([(a, 0), (b, 1)], [(a, 0, 0.9), (far, 1, 0.8), (b, 1, 0.7)]),  # 0 found first, 1 found second
        result([(a, 0), (b, 0)], [(b, 0, 0.2)]),  # any of the two boxes counts
        result([(a, 2, True), (b, 1)], []),  # a crowd is not asked for; 1 is missed
    ]
    got = recall_at_k(results, ks=(1, 2))
    assert got == {"recall_at_1": 50.0, "recall_at_2": 75.0, "queries": 4}


def test_iou_has_no_plus_one():
    assert iou_matrix(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 3, 2.0]]))[0, 0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(4))
def test_ap_equals_pycocotools_summary(seed):
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(12):
        gold = []
        for _ in range(int(rng.integers(0, 5))):
            x, y = rng.uniform(0, 70, 2)
            gold.append(
                (
                    (x, y, x + rng.uniform(5, 30), y + rng.uniform(5, 30)),
                    int(rng.integers(3)),
                    rng.random() < 0.1,
                )
            )
        found = [
            (tuple(np.array(g[0]) + rng.normal(0, 2, 4)), g[1] if rng.random() < 0.8 else 0, rng.random())
            for g in gold
            for _ in range(2)
        ]
        results.append(result(gold, [f for f in found if f[0][2] > f[0][0] and f[0][3] > f[0][1]]))
    ours = coco_ap(results, ["a", "b", "c"])

    annotations = [
        {"id": k + 1, "image_id": i, "category_id": int(c) + 1, "iscrowd": int(crowd),
         "bbox": [*b[:2], b[2] - b[0], b[3] - b[1]], "area": (b[2] - b[0]) * (b[3] - b[1])}
        for k, (i, b, c, crowd) in enumerate(
            (i, b.tolist(), c, crowd)
            for i, r in enumerate(results)
            for b, c, crowd in zip(r.gold_boxes, r.gold_labels, r.gold_ignore, strict=True)
        )
    ]  # fmt: skip
    detections = [
        {
            "image_id": i,
            "category_id": int(c) + 1,
            "score": float(s),
            "bbox": [*b[:2], b[2] - b[0], b[3] - b[1]],
        }
        for i, r in enumerate(results)
        for b, c, s in zip(r.boxes.tolist(), r.labels, r.scores, strict=True)
    ]
    gold = COCO()
    gold.dataset = {
        "info": {}, "annotations": annotations,
        "images": [{"id": i} for i in range(len(results))], "categories": [{"id": i} for i in (1, 2, 3)],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(detections), "bbox")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    assert ours["ap"] == pytest.approx(100 * evaluation.stats[0])
    assert ours["ap50"] == pytest.approx(100 * evaluation.stats[1])
    assert ours["ap75"] == pytest.approx(100 * evaluation.stats[2])
    assert 0 < ours["ap50"] < 100


def test_without_ground_truth_ap_is_undefined():
    crowds = image([((0, 0, 50, 50), 0, True)], [((0, 0, 9, 9), 0, 0.5)])
    for results in ([crowds], [result([], [((0, 0, 5, 5), 0, 0.5)])], []):
        assert coco_ap(results, ["a"]) == {"ap": None, "ap50": None, "ap75": None}


def test_nothing_found_is_zero():
    assert coco_ap([result([((0, 0, 5, 5), 0)], [])], ["a"])["ap"] == 0.0


def test_a_model_that_finds_nothing_has_no_points_for_what_is_there():
    """A gate on small boxes must refuse it, not fail to find the metric."""
    gold = [((0, 0, 10, 10), 0, False), ((0, 0, 50, 50), 0, False), ((0, 0, 99, 99), 0, True)]
    nothing, something = (coco_ap([image(gold, found)], ["a"]) for found in ([], [((0, 0, 10, 10), 0, 0.5)]))
    assert nothing.keys() == something.keys() >= {"ap_small", "ar_small", "ap_medium"} and "ap_large" not in nothing
    assert set(nothing.values()) == {0.0}
