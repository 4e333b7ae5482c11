"""Labels judged by hand, proposals that hold what they promise, and calibration that adds up."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.evaluation.calibration import calibration_error, score_bands
from pipeline.evaluation.label_qa import best_f1, judge_labels, label_quality_of, lowest_threshold, write_label_qa
from pipeline.evaluation.match_tables import read_match_tables, write_match_tables
from tests.pipeline.evaluation.test_compare import evidence_of, random_results
from tests.pipeline.evaluation.test_matching import image

A, B = (0, 0, 10, 10), (50, 50, 90, 90)


def evidence():
    results = [
        image([(A, 0, False), (B, 0, False)], [(A, 0, 0.9), (A, 0, 0.8), (B, 1, 0.7), (B, 0, 0.3)]),
        # name 1 is known to be absent, of 2 and 3 nothing is known
        image([(B, 0, False)], [(A, 1, 0.95), (B, 1, 0.6), (A, 2, 0.99)], absent={1}),
    ]
    return evidence_of(results)


def test_labels_by_hand():
    judged = judge_labels(evidence())
    # in image 0 names 1, 2 and 3 are absent; of image 1 the label of name 2 is not judged
    assert sorted(zip(judged.score.round(2), judged.correct, strict=True)) == [
        (0.3, True), (0.6, False), (0.7, False), (0.8, False), (0.9, True), (0.95, False),
    ]  # fmt: skip
    assert judged.at(0.5) == {
        "threshold": 0.5, "labels": 5, "precision": pytest.approx(20.0), "recall": pytest.approx(100 / 3),
        "best_labels": 3, "best_precision": pytest.approx(100 / 3), "false_share": pytest.approx(50.0),
    }  # fmt: skip
    # of 4 absent names: 3 in image 0 and 1 in image 1
    assert judged.at(0.65)["false_share"] == pytest.approx(50.0)
    assert judged.at(0.8)["false_share"] == pytest.approx(25.0)


def test_sizes_and_frequencies_are_judged_apart():
    got = label_quality_of(replace(evidence(), counts={"a": 200, "b": 3}), [50])
    assert set(got["by_size"]) == {"small", "medium"}
    assert got["by_size"]["small"]["gold"] == 1 and got["by_size"]["medium"]["gold"] == 2
    assert got["by_size"]["small"]["by_threshold"][0]["labels"] == 3
    assert not any("false_share" in row for one in got["by_size"].values() for row in one["by_threshold"])
    frequent, rare = (got["by_frequency"][group] for group in ("frequent", "rare"))
    assert frequent["gold"] == 3 and "false_share" not in frequent["by_threshold"][0]  # no image is without a
    # b, c and d have no gold, but labels where they are not: two of their four absent pairs
    at_half = next(row for row in rare["by_threshold"] if row["threshold"] == 0.5)
    assert rare["gold"] == 0 and at_half["false_share"] == pytest.approx(50.0)
    assert (at_half["precision"], at_half["recall"]) == (0.0, None)
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


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000))
def test_the_best_f1_is_the_best_of_all_thresholds(seed):
    matches = evidence_of(random_results(seed, images=8))
    rounded = np.round(np.asarray(matches.matches.score), 1)  # as bf16 has few scores, of which many are equal
    judged = judge_labels(replace(matches, matches=replace(matches.matches, score=rounded)))

    def f1(threshold):
        kept = judged.score >= threshold
        return 2 * judged.correct[kept].sum() / (kept.sum() + len(judged.gold_score))

    assert f1(best_f1(judged)) == max(map(f1, judged.score))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000))
def test_bands_hold_every_detection(seed):
    matches = evidence_of(random_results(seed, images=6)).matches  # every name is known to be there or not
    bands = score_bands(matches)
    assert sum(b["detections"] for b in bands) == len(matches.score)
    assert sum(b["right"] for b in bands) == matches.tp[:, 0].sum()
    assert all(b["from"] <= b["score"] <= b["to"] for b in bands) and 0 <= calibration_error(bands) <= 100


def test_bands_and_sweeps_leave_out_what_nobody_knows():
    """The label with the highest score is of a name that nobody looked for: neither right nor
    wrong, in every figure."""
    bands = label_quality_of(evidence(), [50])["by_score"]
    assert max(b["to"] for b in bands) == 1.0 and sum(b["detections"] for b in bands) == 6  # of 7
    assert bands[-1] == {
        "from": 0.95, "to": 1.0, "score": pytest.approx(0.95), "detections": 1, "right": 0, "precision": 0.0
    }  # fmt: skip


def test_a_label_beside_a_crowd_of_its_name_is_wrong():
    crowd = evidence_of([image([(A, 0, True), (A, 1, False)], [(A, 0, 0.9), (B, 0, 0.8), (A, 1, 0.7)])])
    assert judge_labels(crowd).correct.tolist() == [False, True]  # the one that finds the crowd is not judged


def test_the_page_names_every_group(tmp_path):
    write_match_tables(tmp_path / "evidence", "gold", replace(evidence(), counts={"a": 200, "b": 3}))
    (tmp_path / "metrics.json").write_text(
        json.dumps({"model": "m", "sets": {"gold": {}}, "protocols": {"gold": "lvis"}, "settings": {"gold": {}}})
    )
    page = write_label_qa(tmp_path, tmp_path, [50])
    assert "| rare names (images of this set) | 0 | none | none |" in page
    assert "| 0.4 | 5 | 20.0 | 33.3 | 33.3 | 50.00 |" in page, page


def test_evidence_of_an_earlier_version_is_told(tmp_path):
    write_match_tables(tmp_path, "gold", evidence())
    card = json.loads((tmp_path / "gold.json").read_text())
    (tmp_path / "gold.json").write_text(json.dumps(card | {"absent_pairs": 4}))
    with pytest.raises(InputError, match=r"gold\.json: written by an earlier version; run evaluate again"):
        read_match_tables(tmp_path, "gold")


def test_a_calibrated_score_has_no_error():
    bands = [{"score": 0.5, "precision": 50.0, "detections": 10}, {"score": 0.9, "precision": 80.0, "detections": 10}]
    assert calibration_error(bands) == pytest.approx(5.0)
