"""Where a run stands, read from its folder."""

import json

import pytest

from pipeline.errors import InputError
from pipeline.execution.folder_lock import folder_lock
from pipeline.execution.progress import ProgressNote, Terminal
from pipeline.runs.layout import RunLayout
from pipeline.runs.status import RunState, list_runs, read_status


def test_what_is_done_and_what_is_going_on(tmp_path):
    layout = RunLayout(tmp_path)
    with pytest.raises(InputError, match=r"no run here \(no config\.yaml\)"):
        read_status(tmp_path)
    layout.config.write_text("seed: 0\n")
    assert read_status(tmp_path) == []
    for folder, names in ((layout.data / "crawl", ["0.tar", "1.tar", "2.tar"]), (layout.phrases, ["0.report.json"])):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    (layout.teacher / "step-00000200").mkdir(parents=True)
    layout.logs.mkdir()
    note = ProgressNote(stage="train", done=250, total=1000, unit="steps", rate=2.0, rate_unit="steps", seconds=125.0)
    (layout.logs / "train-teacher.progress.json").write_text(note.model_dump_json())
    parsed, trained = read_status(tmp_path)
    assert (parsed.name, parsed.done) == ("parse-phrases", "1 of 3 shards")
    assert trained.done == "saved at step 200"
    assert trained.notes == ("train-teacher: 250 of 1,000 steps, 2.0 steps/s, 6 min left",)
    note = ProgressNote(stage="train", done=0, total=1, unit="jobs", waiting="waiting for 1 of the GPUs 0")
    (layout.logs / "train-teacher.progress.json").write_text(note.model_dump_json())
    assert read_status(tmp_path)[1].notes == ("train-teacher: waiting for 1 of the GPUs 0",)
    (layout.teacher / "report.json").write_text(json.dumps({"steps": 1000}))
    assert (
        read_status(tmp_path)[1].done == "saved at step 200"
    )  # it is done anew: the report of before stays until then
    (layout.logs / "train-teacher.progress.json").unlink()
    assert [(s.done, s.notes) for s in read_status(tmp_path)][1] == ("1,000 steps, done", ())


def test_time_left_is_of_what_this_start_does():
    note = ProgressNote(stage="t", done=90_100, total=100_000, before=90_000, unit="steps", seconds=10.0)
    assert note.seconds_left == pytest.approx(990)
    assert note.model_copy(update={"done": 90_000}).seconds_left is None


def test_a_resumed_trainings_rate_is_its_own(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.execution.progress.time.monotonic", lambda: now[0])
    bar = Terminal(note=str(tmp_path / "note.json"))
    bar.begin("train", 100_000, "steps", before=90_000)
    now[0] = 10.0
    bar.advance(100, "steps")
    note = ProgressNote.model_validate_json((tmp_path / "note.json").read_text())
    assert (note.done, note.before, note.rate) == (90_100, 90_000, 10.0) and note.seconds_left == pytest.approx(990)


def test_the_end_of_a_run_and_its_reason_are_kept(tmp_path):
    layout = RunLayout(tmp_path / "mine")
    layout.root.mkdir()
    layout.config.write_text("seed: 0\n")
    RunState.begin(layout, "self-train")
    RunState.change(layout, stage="stage 3 of 9: pseudo-label-round-1")
    with folder_lock(layout.root, print):
        assert read_status(layout.root)[0].done == "running in stage 3 of 9: pseudo-label-round-1"
    assert "without recording why: its process was killed" in read_status(layout.root)[0].done
    RunState.change(layout, state="failed", reason="train-student-1: no space left\nmore", ended=0.0)
    assert read_status(layout.root)[0].done == (
        "failed in stage 3 of 9: pseudo-label-round-1: train-student-1: no space left"
    )
    (row,) = list_runs(tmp_path)
    assert row.name == "mine" and row.state.startswith("failed in stage 3 of 9") and row.numbers == ""
    RunState.change(layout, state="completed")
    summary = {"best": "student-1", "student": {"val.ap": 12.34, "base_ap50": 1.0}, "teacher": {"val.ap": 10.0}}
    layout.summary.write_text(json.dumps(summary))
    (row,) = list_runs(tmp_path)
    assert row.numbers == "student-1: val AP 12.3"
    rounds = [{"student": {"val.ap": 20.0}}, {"student": {"val.ap": 11.0}}]  # the second student was refused
    layout.summary.write_text(json.dumps(summary | {"student": {"val.ap": 11.0}, "by_round": rounds}))
    (row,) = list_runs(tmp_path)
    assert row.numbers == "student-1: val AP 20.0"
    layout.summary.write_text("{}")
    (row,) = list_runs(tmp_path)
    assert row.state == "cannot be read: KeyError: 'best'"
    with pytest.raises(InputError, match="found no runs"):
        list_runs(tmp_path / "mine")
