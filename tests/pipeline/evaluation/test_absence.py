"""cgF1 and its parts against plain loops, and a whole evaluation of present and absent phrases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef

from pipeline.evaluation.absence import PhrasePresence
from pipeline.evaluation.bootstrap import draw_weights
from pipeline.evaluation.match_tables import MatchTables
from pipeline.evaluation.matching import IOUS, match
from pipeline.evaluation.metrics import ImageResult, queries_of

NAMES = ("red umbrella", "green umbrella", "red kite", "bicycle", "a green kite")


def tables_of(results, phrases):
    queries = queries_of(results, absent=True)
    texts = tuple(phrases[image][label] for image, label in zip(queries.image, queries.label, strict=True))
    return MatchTables("cgf1", (), "", match(results, 100), queries, texts, {}, {}, "", ())


def image_result(seed):
    """An image of some of NAMES, with boxes in a row, some of them found, some shifted, some false."""
    rng = np.random.default_rng(seed)
    of = rng.permutation(len(NAMES))[: rng.integers(2, 6)]
    present = sorted(of[: rng.integers(0, len(of))].tolist())
    absent = [n for n in of.tolist() if n not in present]
    gold = [(n, (20.0 * i, 30.0 * n, 20.0 * i + 15, 30.0 * n + 15)) for n in present for i in range(rng.integers(1, 3))]
    found = [(n, tuple(v + s for v in box)) for n, box in gold if rng.random() < 0.8 for s in (rng.integers(0, 6),)]
    found += [(int(n), (300.0, 0.0, 310.0, 10.0)) for n in of if rng.random() < 0.4]
    scores = rng.integers(1, 20, len(found)) / 20
    return ImageResult(
        (400, 400), np.array([b for _, b in gold]).reshape(-1, 4), np.array([n for n, _ in gold], np.int64),
        np.zeros(len(gold), bool), np.array([b for _, b in found]).reshape(-1, 4),
        np.array([n for n, _ in found], np.int64), scores, np.array(absent, np.int64),
    )  # fmt: skip


def iou(a, b):
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def reference(results, threshold):
    """The definitions, pair by pair."""
    truth, said, false, absent = [], [], 0, 0
    tp, predicted, gold = np.zeros(len(IOUS)), 0, 0
    for r in results:
        for label in [*np.unique(r.gold_labels), *r.absent]:
            kept = [i for i in np.argsort(-r.scores, kind="stable") if r.labels[i] == label]
            kept = [i for i in kept if r.scores[i] >= threshold]
            truth.append(label in r.gold_labels)
            said.append(bool(kept))
            if label not in r.gold_labels:
                false, absent = false + len(kept), absent + 1
                continue
            boxes = r.gold_boxes[r.gold_labels == label]
            gold, predicted = gold + len(boxes), predicted + len(kept)
            for t, least in enumerate(IOUS):
                free = set(range(len(boxes)))
                for i in kept:
                    best = max(free, key=lambda g: iou(r.boxes[i], boxes[g]), default=None)
                    if best is not None and iou(r.boxes[i], boxes[best]) >= least:
                        free.discard(best)
                        tp[t] += 1
    f1 = np.mean(2 * tp / max(predicted + gold, 1e-12))
    mcc = matthews_corrcoef(truth, said) if len(set(truth)) > 1 else 0.0
    return {"mcc": 100 * mcc, "pmf1": 100 * f1, "cgf1": 100 * mcc * f1, "false_boxes": 100 * false / max(absent, 1)}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=12), st.integers(1, 19))
def test_metrics_are_those_of_the_definitions(seeds, step):
    results = [image_result(seed) for seed in seeds]
    threshold = step / 20
    presence = PhrasePresence(tables_of(results, [NAMES] * len(results)), threshold)
    drawn = np.array([2.0, *([1.0] * (len(results) - 2)), 0.0])
    got = presence.metrics(np.stack([np.ones(len(results)), drawn]))
    for sample, of in enumerate((results, [results[0], results[0], *results[1:-1]])):
        expected = reference(of, threshold)
        if not any(len(r.absent) for r in of):
            expected.pop("false_boxes")
        for name, value in expected.items():
            assert got[name][sample] == pytest.approx(value, abs=1e-6), name


def test_the_threshold_is_chosen_on_images_that_do_not_count():
    results = [image_result(seed) for seed in range(300)]
    tables = tables_of(results, [NAMES] * len(results))
    presence = PhrasePresence(tables)
    chosen_on = np.random.default_rng(0).random(300) < 0.5
    of_choice = [r for r, chosen in zip(results, chosen_on, strict=True) if chosen]
    thresholds = np.arange(1, 20) / 20
    best = max(reference(of_choice, t)["mcc"] for t in thresholds)
    assert reference(of_choice, presence.threshold)["mcc"] == pytest.approx(best)
    rest = reference([r for r, chosen in zip(results, chosen_on, strict=True) if not chosen], presence.threshold)
    got = presence.metrics(draw_weights(300, 50))
    assert got["cgf1"][0] == pytest.approx(rest["cgf1"]) and got["cgf1"][1:].std() > 0
    assert 0 < rest["mcc"] < 100


def test_kinds_of_absent_phrases():
    boxes, none = np.array([[0.0, 0.0, 9.0, 9.0]]), np.zeros(0, np.int64)
    found = np.array([[20.0, 20.0, 30.0, 30.0]] * 4)
    result = ImageResult(
        (40, 40), boxes, np.array([0]), np.zeros(1, bool), found, np.array([1, 2, 3, 4]), np.full(4, 0.9),
        np.array([1, 2, 3, 4]),
    )  # fmt: skip
    metrics = PhrasePresence(tables_of([result], [NAMES]), 0.5).metrics(np.ones((1, 1)))
    assert {name: v[0] for name, v in metrics.items() if name.startswith("false")} == {
        "false_boxes": 100, "false_boxes_attribute": 100, "false_boxes_noun": 100, "false_boxes_other": 100
    }  # fmt: skip
    assert metrics["mcc"][0] == -100
    empty = ImageResult((40, 40), boxes, np.array([0]), np.zeros(1, bool), boxes[:0], none, np.zeros(0), none)
    assert PhrasePresence(tables_of([empty], [NAMES])).metrics(np.ones((1, 1)))["cgf1"] == [0]
