"""The plan of a run: what is there, and the time and disk of the rest."""

import json

import pytest

from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError
from pipeline.execution.progress import ProgressNote
from pipeline.execution.reports import StageReport
from pipeline.execution.throughput import Rates
from pipeline.runs.layout import RunLayout
from pipeline.runs.plan import check_space, make_plan, plan_lines, read_pilot, settings_lines
from tests.pipeline.runs.test_preflight import model_folder


@pytest.fixture
def run(tmp_path):
    (tmp_path / "crawl").mkdir()
    for n in range(4):
        (tmp_path / "crawl" / f"{n:05d}.tar").write_bytes(b"x" * 1000)
    glip = model_folder(tmp_path / "glip")
    config = load_recipe("own", [f"teacher.init={glip}", f"data.crawl={tmp_path}/crawl", "student.keep_checkpoints=2"])
    return config, RunLayout(tmp_path / "run")


def test_the_stages_of_a_run_from_a_crawl_alone(run):
    config, layout = run
    plan = {stage.name: stage for stage in make_plan(config, layout)}
    assert list(plan) == [
        "parse-phrases", "train-teacher", "pseudo-label-round-1", "filter-boxes-round-1", "build-shards-round-1",
        "train-student-1",
    ]  # fmt: skip
    assert plan["pseudo-label-round-1"].seconds is None and plan["build-shards-round-1"].bytes == 4000
    assert plan["train-student-1"].bytes == 100 * (3 * 3 + 1)  # weights and moments, two kept and one written; final
    text = "\n".join(plan_lines(list(plan.values()), layout))
    assert "no rate is known yet; a pilot measures it" in text and "2,000 steps" in text
    assert "teacher:  as it is, from" in "\n".join(settings_lines(config))


def test_names_need_no_phrases(run):
    config, layout = run
    config = config.model_copy(update={"data": config.data.model_copy(update={"names": "dog"})})
    assert next(stage.name for stage in make_plan(config, layout)) == "train-teacher"
    assert "; names dog" in "\n".join(settings_lines(config))


def test_time_is_by_the_pilots_rates_and_a_begun_run_by_its_own(run, tmp_path):
    config, layout = run
    rates = Rates(devices=2, device_seconds=10.0, samples=5, bytes_done=1000)
    pilot = tmp_path / "pilot.json"
    pilot.write_text(StageReport(stage="pseudo-label", done=1, rates=rates).model_dump_json())

    def planned(name):
        return next(stage for stage in make_plan(config, layout, read_pilot(str(pilot))) if stage.name == name)

    assert planned("pseudo-label-round-1").seconds == pytest.approx(4 * 10 / 2)
    folder = layout.regions(1)
    folder.mkdir(parents=True)
    (folder / "00000.report.json").touch()
    assert planned("pseudo-label-round-1").seconds == pytest.approx(3 * 10 / 2)
    layout.logs.mkdir()
    note = ProgressNote(stage="train", done=500, total=2000, before=0, unit="steps", seconds=100.0)
    (layout.logs / "train-student-1.progress.json").write_text(note.model_dump_json())
    (layout.student(1) / "step-00000500").mkdir(parents=True)
    trained = planned("train-student-1")
    assert trained.seconds == pytest.approx(300) and trained.there == "saved at step 500"
    pilot.write_text(json.dumps({"stage": "pseudo-label"}))
    with pytest.raises(InputError, match="found no rates; want the report of a pseudo-label"):
        read_pilot(str(pilot))


def test_more_than_the_disk_has_is_refused(run):
    config, layout = run
    plan = make_plan(config, layout)
    check_space(plan, layout)
    huge = [stage.__class__(stage.name, stage.work, bytes=1 << 60) for stage in plan]
    with pytest.raises(InputError, match=r"free, and the run needs about .* TB; want another folder"):
        check_space(huge, layout)
