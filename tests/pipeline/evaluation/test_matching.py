"""Our matching equals pycocotools', fixed AP equals a slow writing-down of its rules and the lvis package."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.evaluation.fixed_ap import best_of_each_class, fixed_ap, frequency_group
from pipeline.evaluation.matching import class_curves, match
from pipeline.evaluation.metrics import ImageResult, iou_matrix

NAMES = ("a", "b", "c", "d")
# whole numbers, so that equal scores and overlaps of exactly 0.5 do occur
BOX = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)
LABEL = st.integers(0, len(NAMES) - 1)
GOLD = st.lists(st.tuples(BOX, LABEL, st.booleans() | st.just(False)), max_size=6)
FOUND = st.lists(st.tuples(BOX, LABEL, st.integers(1, 9).map(lambda v: v / 10)), max_size=14)
SOME = st.sets(LABEL, max_size=3)


def image(gold, found, absent=None, not_exhaustive=()):
    gold, found = list(gold), list(found)
    present = {g[1] for g in gold}
    return ImageResult(
        size=(20, 20),
        gold_boxes=np.array([g[0] for g in gold], float).reshape(-1, 4),
        gold_labels=np.array([g[1] for g in gold], int),
        gold_ignore=np.array([g[2] for g in gold], bool),
        boxes=np.array([f[0] for f in found], float).reshape(-1, 4),
        labels=np.array([f[1] for f in found], int),
        scores=np.array([f[2] for f in found], float),
        absent=None if absent is None else np.array(sorted(absent - present), int),
        not_exhaustive=np.array(sorted(set(not_exhaustive) & present), int),
    )


def tables(results):
    """(annotations, detections) in COCO's format; ids count from 1."""

    def xywh(box):
        x1, y1, x2, y2 = map(float, box)
        return [x1, y1, x2 - x1, y2 - y1]

    gold, found = [], []
    for number, r in enumerate(results, start=1):
        for box, label, crowd in zip(r.gold_boxes, r.gold_labels, r.gold_ignore, strict=True):
            bbox = xywh(box)
            gold.append(
                {"id": len(gold) + 1, "image_id": number, "category_id": int(label) + 1, "bbox": bbox,
                 "area": bbox[2] * bbox[3], "iscrowd": int(crowd)}
            )  # fmt: skip
        for box, label, score in zip(r.boxes, r.labels, r.scores, strict=True):
            found.append({"image_id": number, "category_id": int(label) + 1, "bbox": xywh(box), "score": float(score)})
    return gold, found


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(GOLD, FOUND), min_size=1, max_size=4))
def test_matching_and_curves_equal_pycocotools(images):
    results = [image(g, f) for g, f in images]
    gold, found = tables(results)
    if not gold or not found:
        return
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {}, "images": [{"id": i + 1} for i in range(len(results))], "annotations": gold,
            "categories": [{"id": i + 1} for i in range(len(NAMES))],
        }  # fmt: skip
        coco.createIndex()
        theirs = COCOeval(coco, coco.loadRes(found), "bbox")
        theirs.evaluate(), theirs.accumulate()
    precision = theirs.eval["precision"][:, :, :, 0, 2]  # (IoU, recall, class)
    ours = class_curves(match(results, max_per_class=100))
    for label in range(len(NAMES)):
        if label in ours:
            np.testing.assert_allclose(ours[label], precision[:, :, label], atol=1e-12)
        else:
            assert (precision[:, :, label] == -1).all()


def slow_fixed_ap(results, most):
    """The rules one after the other, for every threshold, class and detection by itself."""
    ranked = {}
    for number, r in enumerate(results):
        for k, (label, score) in enumerate(zip(r.labels, r.scores, strict=True)):
            ranked.setdefault(label, []).append((-score, number, k))
    aps = []
    for label in range(len(NAMES)):
        count = sum(int((r.gold_labels == label).sum()) for r in results)
        if not count:
            continue
        chosen = sorted(ranked.get(label, []))[:most]
        for threshold in np.linspace(0.5, 0.95, 10):
            taken, tp, fp, points = set(), 0, 0, []
            for _, number, k in chosen:
                r = results[number]
                mine = np.flatnonzero(r.gold_labels == label)
                if not len(mine) and label not in r.absent:
                    continue
                overlaps = iou_matrix(r.boxes[k : k + 1], r.gold_boxes[mine])[0]
                free = [
                    (o, g) for o, g in zip(overlaps, mine, strict=True) if o >= threshold and (number, g) not in taken
                ]
                if free:
                    taken.add((number, max(free)[1]))
                    tp += 1
                elif label in r.not_exhaustive:
                    continue
                else:
                    fp += 1
                points.append((tp / count, tp / (tp + fp)))
            reached = [max((p for rec, p in points if rec >= want), default=0.0) for want in np.linspace(0, 1, 101)]
            aps.append(np.mean(reached))
    return 100 * float(np.mean(aps)) if aps else None


@st.composite
def federated(draw):
    # unequal scores: how the lvis package orders equal ones is not part of the rules
    images = draw(st.lists(st.tuples(GOLD, FOUND, SOME, SOME), min_size=1, max_size=4))
    scores = iter(draw(st.permutations(range(1, 1 + sum(len(f) for _, f, _, _ in images)))))
    return [
        image([(b, n, False) for b, n, _ in g], [(b, n, next(scores) / 100) for b, n, _ in f], absent, partly)
        for g, f, absent, partly in images
    ]


def fixed_matches(results, most=10_000):
    return match(best_of_each_class(results, most), federated=True)


@settings(max_examples=150, deadline=None)
@given(federated(), st.sampled_from([1, 3, 10_000]))
def test_fixed_ap_equals_a_slow_reading_of_its_rules(results, most):
    assert fixed_ap(fixed_matches(results, most), NAMES)["ap"] == pytest.approx(slow_fixed_ap(results, most))


def test_fixed_ap_by_hand():
    a, b = (0, 0, 10, 10), (20, 20, 30, 30)
    results = [
        image([(a, 0, False)], [(b, 0, 0.9), (a, 0, 0.8), (a, 1, 0.7)], absent=set()),  # b is of no known name here
        image([(b, 1, False)], [(b, 1, 0.6), (a, 0, 0.95)], absent={0}),  # a is known to be absent
    ]
    # class a: wrong (0.95), wrong (0.9), right (0.8): precision 1/3 at full recall; class b: right alone
    groups = {"a": "rare", "b": "frequent"}
    got = fixed_ap(fixed_matches(results), NAMES, groups)
    assert got == pytest.approx(
        {"ap": 200 / 3, "ap50": 200 / 3, "ap75": 200 / 3, "ap_rare": 100 / 3, "ap_frequent": 100.0}
    )
    # the two best of class a over the set are both wrong; the right one is beyond the limit
    assert fixed_ap(fixed_matches(results, 2), NAMES, groups)["ap_rare"] == 0.0


def test_frequency_groups_are_lvis():
    assert [frequency_group(n) for n in (1, 10, 11, 100, 101)] == ["rare", "rare", "common", "common", "frequent"]


def test_the_best_of_each_class_over_the_set():
    results = [image([], [((0, 0, 5, 5), 0, 0.5), ((0, 0, 5, 5), 1, 0.1)]), image([], [((0, 0, 5, 5), 0, 0.6)])]
    got = best_of_each_class(results, 1)
    assert [r.scores.tolist() for r in got] == [[0.1], [0.6]]


@pytest.mark.parametrize("seed", range(5))
def test_fixed_ap_equals_the_lvis_package(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 is older than numpy 2
    import lvis

    rng = np.random.default_rng(seed)
    results = []
    for _ in range(30):
        gold, found = [], []
        for label in rng.choice(4, int(rng.integers(0, 4)), replace=False):
            for _ in range(int(rng.integers(1, 4))):
                x, y, w, h = rng.uniform(0, 60), rng.uniform(0, 60), *rng.uniform(5, 40, 2)
                gold.append(((x, y, x + w, y + h), int(label), False))
                moved = np.array([x, y, x + w, y + h]) + rng.normal(0, 2, 4)
                found.append((tuple(moved), int(rng.choice([label, rng.integers(4)])), rng.random()))
        for _ in range(int(rng.integers(0, 20))):
            x, y, w, h = rng.uniform(0, 60), rng.uniform(0, 60), *rng.uniform(5, 40, 2)
            found.append(((x, y, x + w, y + h), int(rng.integers(4)), rng.random()))
        results.append(image(gold, found, set(rng.choice(4, 2).tolist()), set(rng.choice(4, 1).tolist())))
    most = 60
    groups = dict(zip(NAMES, ("r", "c", "f", "f"), strict=True))
    gold, _ = tables(results)
    _, found = tables(best_of_each_class(results, most))
    file = tmp_path / "gold.json"
    file.write_text(
        json.dumps(
            {
                "images": [
                    {"id": i, "neg_category_ids": (r.absent + 1).tolist(),
                     "not_exhaustive_category_ids": (r.not_exhaustive + 1).tolist()}
                    for i, r in enumerate(results, start=1)
                ],
                "annotations": gold,
                "categories": [{"id": i, "name": n, "frequency": groups[n]} for i, n in enumerate(NAMES, start=1)],
            }
        )
    )  # fmt: skip
    truth = lvis.LVIS(str(file))
    theirs = lvis.LVISEval(truth, lvis.LVISResults(truth, found, max_dets=-1), "bbox")
    theirs.params.max_dets = -1
    theirs.run()
    full = {"r": "rare", "c": "common", "f": "frequent"}
    ours = fixed_ap(fixed_matches(results, most), NAMES, {n: full[g] for n, g in groups.items()})
    for mine, name in (
        ("ap", "AP"),
        ("ap50", "AP50"),
        ("ap75", "AP75"),
        ("ap_rare", "APr"),
        ("ap_common", "APc"),
        ("ap_frequent", "APf"),
    ):
        assert ours[mine] == pytest.approx(100 * theirs.results[name], abs=1e-9), mine
    assert 0 < ours["ap"] < ours["ap50"] < 100
