"""The end of a round: who is promoted, when rounds stop, and the page that says so."""

from __future__ import annotations

import json
import re

import pytest

from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError, RunError
from pipeline.evaluation.match_tables import read_match_tables, write_match_tables
from pipeline.evaluation.metrics import coco_ap
from pipeline.evaluation.promotion import promote
from pipeline.io.atomic import write_json
from pipeline.report.round import write_round
from pipeline.runs.layout import RunLayout
from pipeline.runs.readiness import check_teacher, estimate_labels
from pipeline.runs.rounds import best_model, check_promotion, decide
from pipeline.runs.summary import model_metrics
from tests.pipeline.evaluation.test_compare import evidence_of, random_results
from tests.pipeline.evaluation.test_matching import NAMES
from tests.pipeline.evaluation.test_metrics import recall_at_k


def evaluated(layout: RunLayout, model: str, *, images: int = 60, **qualities: float) -> None:
    """An evaluation folder of a model that names so large a share of the things rightly, set by set."""
    sets = {}
    for name, quality in qualities.items():
        results = random_results(0, images=images, quality=quality)
        sets[name] = {"images": float(images), **recall_at_k(results), **coco_ap(results, NAMES)}
        write_match_tables(layout.evaluation(model) / "evidence", name, evidence_of(results))
    write_json(
        layout.evaluation(model) / "metrics.json",
        {
            "model": f"{model}@1",
            "sets": sets,
            "protocols": dict.fromkeys(sets, "detection"),
            "settings": {s: {} for s in sets},
        },
    )


def recipe(*changes: str):
    return load_recipe("demo", ["rounds=3", "demo=null", "promotion.samples=200", *changes])


def test_a_better_student_teaches_the_next_round(tmp_path):
    layout = RunLayout(tmp_path)
    evaluated(layout, "teacher", eval_base=0.5, eval_novel=0.3)
    evaluated(layout, "student-1", eval_base=0.7, eval_novel=0.9)
    evaluated(layout, "control-1", eval_base=0.6, eval_novel=0.3)
    result = decide(recipe(), layout, 1)
    assert result.promoted and result.go_on and result.metric == "eval_novel.recall_at_1"
    assert result.gain is not None and result.gain > 20 and result.gain_interval and result.gain_interval[0] > 0
    assert (
        json.loads(layout.round(1).read_text())["why"] == result.why == f"promoted: {result.metric} {result.gain:+.1f}"
    )
    verdict = json.loads((layout.evaluation("student-1") / "promotion.json").read_text())
    assert verdict["teacher"] == {"folder": "../teacher", "model": "teacher@1"}  # wherever the run lies

    regions = {"seen": 3, "kept": 2, "dropped": {"below_threshold": 1}}
    page = write_round(recipe(), layout, result, {"filter-boxes": {"tallies": {"regions": regions}}})
    html = (layout.report / "round-1.html").read_text()
    for text in (page, html):
        assert (
            result.why in text and "control" in text and "*.ap &gt;= -1" in text.replace("*.ap >= -1", "*.ap &gt;= -1")
        )
        assert f"{result.gain:+.1f}" in text and "below threshold 1" in text
    again = decide(recipe(), layout, 1)
    assert again == result


def test_a_student_that_lost_what_the_teacher_knew_is_refused(tmp_path):
    layout = RunLayout(tmp_path)
    evaluated(layout, "teacher", eval_base=0.9, eval_novel=0.3)
    evaluated(layout, "student-1", eval_base=0.4, eval_novel=0.9)
    evaluated(layout, "control-1", eval_base=0.4, eval_novel=0.3)
    result = decide(recipe(), layout, 1)
    assert result.promoted is False and not result.go_on
    assert any(text.startswith("eval_base.recall_at_1 -") for text in result.failed)
    assert result.why.startswith("not promoted: ")
    assert best_model([result]) == "teacher"
    lenient = decide(recipe("promotion.gates=[eval_novel.recall_at_1>0]"), layout, 1)
    assert (
        lenient.promoted
        and best_model([lenient, result.model_copy(update={"round": 2, "student": "student-2"})]) == "student-1"
    )


@pytest.mark.parametrize(("teacher", "best"), [(0.3, "control-1"), (1.0, "teacher")])
def test_a_student_below_its_control_is_refused_and_the_better_control_is_used(tmp_path, teacher, best):
    """Playing cards in photographs: AP50 of teacher, control and student 26.0, 54.9, 39.2."""
    layout = RunLayout(tmp_path)
    evaluated(layout, "teacher", eval_base=0.3, eval_novel=teacher)
    evaluated(layout, "student-1", eval_base=0.6, eval_novel=0.6)
    evaluated(layout, "control-1", eval_base=0.6, eval_novel=0.85)
    result = decide(recipe("promotion.gates=[eval_base.ap>=0]"), layout, 1)
    assert result.promoted is False and not result.go_on and best_model([result]) == best
    assert result.control_gain is not None and result.control_gain < -10 and result.control_gain_interval
    assert re.search(
        r"^not promoted: the labels harmed: eval_novel\.ap -\d+\.\d+ \(-\d+\.\d to -\d+\.\d\) against the control, "
        r"wanted control:\*\.ap >= 0",
        result.why,
    )
    page = write_round(recipe(), layout, result, {})
    html = (layout.report / "round-1.html").read_text()
    for text in (page, html):
        assert "the labels harmed" in text and "control:*.ap" in text
    assert ("The model to use is control-1." in html) == (best == "control-1")
    lenient = decide(recipe("promotion.gates=['control:*.ap>=-100', 'eval_base.ap>=0']"), layout, 1)
    assert lenient.promoted and best_model([lenient]) == "student-1"


def test_a_control_that_was_not_measured_where_the_student_was_is_told(tmp_path):
    layout = RunLayout(tmp_path)
    for model in ("teacher", "student-1"):
        evaluated(layout, model, eval_base=0.8, eval_novel=0.5)
    evaluated(layout, "control-1", eval_base=0.5)
    folders = [layout.evaluation(model) for model in ("student-1", "teacher", "control-1")]
    with pytest.raises(
        InputError, match=r"gate 'control:\*\.ap >= 0': the control has no eval_novel\.ap; evaluate it as"
    ):
        promote(*folders[:2], control=folders[2], samples=10)


def test_verdicts_within_chance_and_small_sets_are_warned_of(tmp_path, caplog):
    layout = RunLayout(tmp_path)
    evaluated(layout, "teacher", eval_base=0.5, eval_novel=0.5)
    evaluated(layout, "student-1", eval_base=0.5, eval_novel=0.9)
    folders = layout.evaluation("student-1"), layout.evaluation("teacher")
    verdict = promote(*folders, gates=["eval_novel.ap>=0", "eval_base.ap>=0"], samples=50)
    # the same predictions: a difference of 0 in every resample, which is the bound itself
    base, *small = verdict["warnings"]
    assert base.startswith("eval_base.ap +0.00 (+0.0 to +0.0): the interval contains the bound of eval_base.ap >= 0")
    assert not small and base in caplog.text
    assert not promote(*folders, gates=["eval_novel.ap>=-1", "eval_base.ap>=-1"], samples=50)["warnings"]
    small = RunLayout(tmp_path / "small")
    for model in ("teacher", "student-1"):
        evaluated(small, model, images=10, few=0.5)
    folders = small.evaluation("student-1"), small.evaluation("teacher")
    boxes = len(read_match_tables(folders[0] / "evidence", "few").matches.gold_image)
    assert boxes < 100
    verdict = promote(*folders, gates=["few.ap>=-1", "few.recall_at_1>=-1"], samples=50)
    assert verdict["warnings"] == [f"set few: found {boxes} gold boxes; want 100 or more to decide by"]


def test_one_image_gives_differences_without_intervals(tmp_path):
    """Its resamples are all alike: an interval without width would claim certainty."""
    layout = RunLayout(tmp_path)
    for model in ("teacher", "student-1", "control-1"):
        evaluated(layout, model, images=1, eval_base=0.8, eval_novel=0.5)
    result = decide(recipe(), layout, 1)
    assert result.promoted and result.gain == 0 and result.gain_interval is None
    assert "interval" not in (layout.evaluation("student-1") / "promotion.json").read_text()


def test_a_metric_that_the_student_lacks_is_named_though_no_gate_is_for_it(tmp_path):
    layout = RunLayout(tmp_path)
    evaluated(layout, "teacher", eval_base=0.8, eval_novel=0.5)
    for model in ("student-1", "control-1"):
        evaluated(layout, model, eval_base=0.8)
    gates = "promotion.gates=['eval_base.ap>=-1','control:eval_base.ap>=0']"
    with pytest.raises(InputError, match=r"eval_novel\.recall_at_1"):
        decide(recipe(gates), layout, 1)


def test_gates_on_the_control_count_where_there_is_one(tmp_path):
    layout = RunLayout(tmp_path)
    for model in ("teacher", "student-1"):
        evaluated(layout, model, eval_base=0.8, eval_novel=0.5)
    config = recipe("control=false", "promotion.gates=['control:*.ap>=0,eval_base.ap>=-1']")
    check_promotion(config, layout)
    assert decide(config, layout, 1).promoted
    folders = layout.evaluation("student-1"), layout.evaluation("teacher")
    with pytest.raises(InputError, match=r"gate 'control:\*.ap >= 0': found no control; want one"):
        promote(*folders, gates=["control:*.ap>=0"], samples=10)


def test_rounds_stop_when_they_no_longer_pay(tmp_path):
    layout = RunLayout(tmp_path)
    for model, quality in (("student-1", 0.8), ("student-2", 0.82)):
        evaluated(layout, model, eval_base=0.8, eval_novel=quality)
    evaluated(layout, "teacher", eval_base=0.8, eval_novel=0.5)
    for control in ("control-1", "control-2"):
        evaluated(layout, control, eval_base=0.8, eval_novel=0.5)
    config = recipe("promotion.least_gain=8", "promotion.gates=[eval_novel.*recall_at_1>=-100]")
    assert decide(config, layout, 1).go_on
    last = decide(config, layout, 2)
    assert last.teacher == "student-1" and last.promoted and not last.go_on
    assert "below promotion.least_gain 8" in last.why and best_model([last]) == "student-2"


def test_the_summary_has_what_the_protocols_have(tmp_path):
    file = tmp_path / "metrics.json"
    write_json(file, {"sets": {"eval_base": {"ap50": 40.126, "ap_rare": 1.0}, "eval_novel": {"precision_at_1": 50.0}}})
    assert model_metrics(file, recipe()) == {"base_ap50": 40.13}


def test_without_evaluation_sets_every_student_teaches(tmp_path):
    result = decide(recipe("data.base=null", "data.novel=null"), RunLayout(tmp_path), 2)
    assert result.promoted is None and result.go_on and "no evaluation set" in result.why
    assert best_model([result]) == "student-2"
    text = write_round(recipe("data.base=null", "data.novel=null"), RunLayout(tmp_path), result, {})
    assert "no evaluation set" in text and (tmp_path / "report" / "round-2.html").is_file()


def test_a_control_that_rises_shows_that_the_teacher_was_not_ready(tmp_path):
    layout = RunLayout(tmp_path)
    for model, quality in (("teacher", 0.3), ("student-1", 0.5), ("control-1", 0.8)):
        evaluated(layout, model, eval_base=0.8, eval_novel=quality)
    result = decide(recipe(), layout, 1)
    assert result.promoted is False and result.better_control == "control-1"
    assert re.search(r"the teacher was not trained enough .* its control rose by \d+\.\d points", result.why)
    evaluated(layout, "control-1", eval_base=0.8, eval_novel=0.3)
    assert "not trained enough" not in decide(recipe(), layout, 1).why


def test_the_precision_of_labels_is_estimated_before_labelling(tmp_path, caplog):
    layout = RunLayout(tmp_path)
    assert check_teacher(recipe(), layout, "teacher") == ""
    evaluated(layout, "teacher", eval_base=0.5, eval_novel=0.3)
    estimate = estimate_labels(recipe("filter_boxes.threshold=0.2"), layout, "teacher")
    m = read_match_tables(layout.evaluation("teacher") / "evidence", "eval_base").matches
    best = {}
    for image, label, score, tp, present in zip(m.image, m.label, m.score, m.tp[:, 0], m.present, strict=True):
        if present and score > 0.2 and score > best.get((image, label), (0, None))[0]:
            best[image, label] = score, tp
    assert estimate.labels == len(best) and estimate.set_name == "eval_base"
    assert estimate.precision == pytest.approx(100 * sum(tp for _, tp in best.values()) / len(best))
    text = check_teacher(recipe("filter_boxes.threshold=0.2"), layout, "teacher")
    assert text.startswith("teacher: ") and text.endswith("labels right on eval_base at threshold 0.2")
    assert ("bad labels can make the student worse" in caplog.text) == (estimate.precision < 60)
    with pytest.raises(RunError, match=r"want 100 % \(promotion.least_label_precision\) before the crawl is labelled"):
        check_teacher(recipe("filter_boxes.threshold=0.2", "promotion.least_label_precision=1"), layout, "teacher")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("promotion.gates=[lvis.ap>=0]", r"gate 'lvis.ap >= 0': fits no metric; there are eval_base.ap"),
        (
            "promotion.gain=eval_novel.ap_rare",
            r"promotion.gain: 'eval_novel.ap_rare' is no metric .* there are eval_base",
        ),
        ("promotion.gain=novel", r"promotion.gain: 'novel' is no metric"),
    ],
)
def test_a_gate_that_fits_nothing_is_told_before_anything_is_labelled(tmp_path, change, words):
    layout = RunLayout(tmp_path)
    evaluated(layout, "teacher", eval_base=0.8, eval_novel=0.5)
    check_promotion(recipe(), layout)
    with pytest.raises(InputError, match=words):
        check_promotion(recipe(change), layout)
