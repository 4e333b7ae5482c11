"""Labels judged by hand, proposals that hold what they promise, and calibration that adds up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.calibration import calibration_error, score_bands
from pipeline.evaluation.label_qa import best_f1, judge_labels, label_quality_of, lowest_threshold
from tests.pipeline.evaluation.test_compare import evidence_of, random_results
from tests.pipeline.evaluation.test_matching import image

A, B = (0, 0, 10, 10), (50, 50, 90, 90)


def evidence(absent_pairs=5):
    results = [
        image([(A, 0, False), (B, 0, False)], [(A, 0, 0.9), (A, 0, 0.8), (B, 1, 0.7), (B, 0, 0.3)]),
        # name 1 is known to be absent, of 2 and 3 nothing is known
        image([(B, 0, False)], [(A, 1, 0.95), (B, 1, 0.6), (A, 2, 0.99)], absent={1}),
    ]
    from dataclasses import replace

    return replace(evidence_of(results), absent_pairs=absent_pairs)


def test_labels_by_hand():
    judged = judge_labels(evidence())
    # in image 0 names 1, 2 and 3 are absent; of image 1 the label of name 2 is not judged
    assert sorted(zip(judged.score.round(2), judged.right, strict=True)) == [
        (0.3, True), (0.6, False), (0.7, False), (0.8, False), (0.9, True), (0.95, False),
    ]  # fmt: skip
    assert judged.at(0.5) == {
        "threshold": 0.5, "labels": 5, "precision": pytest.approx(20.0), "recall": pytest.approx(100 / 3),
        "best_labels": 3, "best_precision": pytest.approx(100 / 3), "false_share": pytest.approx(40.0),
    }  # fmt: skip
    assert judged.at(0.65)["false_share"] == pytest.approx(40.0) and judged.at(0.8)["false_share"] == pytest.approx(
        20.0
    )


def test_sizes_and_frequencies_are_judged_apart():
    from dataclasses import replace

    got = label_quality_of(replace(evidence(), counts={"a": 200, "b": 3}), [50])
    assert set(got["by_size"]) == {"small", "medium"}
    assert got["by_size"]["small"]["gold"] == 1 and got["by_size"]["medium"]["gold"] == 2
    assert got["by_size"]["small"]["by_threshold"][0]["labels"] == 3
    assert got["by_frequency"]["frequent"]["gold"] == 3 and "rare" not in got["by_frequency"]  # name b has no gold
    assert got["proposed"]["precision_50"] is None  # fewer labels than a proposal must rest on


SCORES = st.lists(st.tuples(st.integers(0, 20).map(lambda v: v / 20), st.booleans()), max_size=40)


@settings(max_examples=200, deadline=None)
@given(SCORES, st.sampled_from([30, 50, 80, 100]), st.integers(1, 5))
def test_a_proposed_threshold_is_the_lowest_that_holds(labels, wanted, least):
    score, right = np.array([s for s, _ in labels]), np.array([r for _, r in labels], bool)
    holding = [
        t for t in set(score.tolist()) if (score >= t).sum() >= least and 100 * right[score >= t].mean() >= wanted
    ]
    assert lowest_threshold(score, right, wanted, least) == (min(holding) if holding else None)


def test_the_best_f1_is_the_best_of_all_thresholds():
    judged = judge_labels(evidence_of(random_results(4)))

    def f1(threshold):
        kept = judged.score >= threshold
        return 2 * judged.right[kept].sum() / (kept.sum() + len(judged.gold_score))

    assert f1(best_f1(judged)) == max(map(f1, judged.score))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000))
def test_bands_hold_every_detection(seed):
    matches = evidence_of(random_results(seed, images=6)).matches
    bands = score_bands(matches)
    assert sum(b["detections"] for b in bands) == len(matches.score)
    assert sum(b["right"] for b in bands) == matches.hit[:, 0].sum()
    assert all(b["from"] <= b["score"] <= b["to"] for b in bands) and 0 <= calibration_error(bands) <= 100


def test_a_calibrated_score_has_no_error():
    bands = [{"score": 0.5, "precision": 50.0, "detections": 10}, {"score": 0.9, "precision": 80.0, "detections": 10}]
    assert calibration_error(bands) == pytest.approx(5.0)
