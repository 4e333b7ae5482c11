"""Child processes that nothing in the user's folder misleads, and whose reasons for failing reach the user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.subprocess_jobs import ChildJob, run_child
from pipeline.config import ModelConfig, TrainConfig
from pipeline.errors import InputError, RunError, StageError
from pipeline.stages.jobs import ParsePhrases, TrainModel, read_job, write_job
from tests.conftest import tiny_model
from tests.fixtures.training import write_sources
from tests.flows.tiny import BIN, ROOT, misleading
from tests.pipeline.stages.test_train import KillAt, Killed


def training(tmp_path: Path, out: Path, **settings) -> ChildJob:
    config = TrainConfig(
        steps=6, batch_size=2, image_sizes=(64,), max_image_size=128, mixture={"detection": 1}, save_every=1, **settings
    )
    sources = {"detection": write_sources(tmp_path / "train")["detection"]}
    job = TrainModel(settings=config, sources=sources, out=out, model=tiny_model(ModelConfig), threads=1)
    return ChildJob(name="train", stage="train-teacher", job=job, logs=tmp_path / "logs")


def test_a_job_file_is_read_as_it_was_written(tmp_path):
    job = ParsePhrases(shards=["a.tar", tmp_path / "b.tar"], out=tmp_path / "out", workers=2)
    write_job(tmp_path / "job.json", job)
    assert read_job(tmp_path / "job.json") == job
    (tmp_path / "other.json").write_text('{"stage": "parse-phrases", "job": {"shards": ["a.tar"], "owt": "x"}}')
    with pytest.raises(InputError, match=r"other\.json: owt: Extra inputs .*did you mean out"):
        read_job(tmp_path / "other.json")


@pytest.mark.slow
def test_two_hundred_thousand_shards_start(tmp_path):
    """More than an operating system takes as a command line."""
    shards = [f"s3://bucket/{'x' * 85}/{i:010d}.tar" for i in range(200_000)]
    assert len(shards[0]) == 112
    broken = tmp_path / "none.tar"
    job = ParsePhrases(shards=[*shards, str(broken)], out=tmp_path / "out")
    with pytest.raises(InputError, match=r"^parse: .*none\.tar: no such file \(exit code 2; log: .*parse\.log\)$"):
        run_child(ChildJob(name="parse", stage="parse-phrases", job=job, logs=tmp_path / "logs"))


@pytest.mark.slow
def test_files_of_the_users_with_our_names_mislead_neither_commands_nor_children(tmp_path, monkeypatch):
    monkeypatch.chdir(misleading(tmp_path))
    report = run_child(training(tmp_path, tmp_path / "out"))
    assert report is not None and report["steps"] == 6
    env = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"} | {"PREFECT_HOME": str(tmp_path / "prefect")}
    for command in ("pseudo-label", "self-train", "make-demo-data", "run-job"):
        done = subprocess.run([str(BIN / command), "--help"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "Usage:" in done.stdout, done.stderr


@pytest.mark.slow
def test_changed_settings_are_the_childs_own_line_and_code(tmp_path):
    child = training(tmp_path, tmp_path / "out", learning_rate=1e-3)
    assert isinstance(child.job, TrainModel)
    with pytest.raises(Killed):  # an unfinished training
        child.job.model_copy(update={"progress": KillAt(3)}).run()
    settings = child.job.settings.model_copy(update={"weight_decay": 0.3})
    again = child.model_copy(update={"job": child.job.model_copy(update={"settings": settings})})
    with pytest.raises(InputError, match=r"^train: .*weight_decay.*\(exit code 2; log: .*train\.log\)$") as error:
        run_child(again)
    assert "Traceback" not in str(error.value)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_the_childs_own_line_and_code(tmp_path):
    with pytest.raises(RunError, match=r"^train: step \d+: non-finite .*\(exit code 1; log: .*train\.log\)$"):
        run_child(training(tmp_path, tmp_path / "out", learning_rate=1e30, warmup_steps=0))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_full_disk_is_named(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        child = training(tmp_path, disk / "out").model_copy(update={"logs": disk / "logs"})
        line = rf"^train: {disk}.*: No space left on device \(exit code 1; log: "
        with pytest.raises(StageError, match=line) as error:  # no other try would succeed
            run_child(child)
        assert len(str(error.value).splitlines()) == 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_training_of_several_processes_says_its_own_reason(tmp_path):
    """The launcher's traceback and its exit code 1 stand for nothing."""
    child = training(tmp_path, tmp_path / "out", accumulate=3).model_copy(update={"processes": 2})
    with pytest.raises(InputError, match=r"^train: .*batch_size 2 cannot be shared.*\(exit code 2; log: "):
        run_child(child)
    assert sys.executable in child.arguments() and str(ROOT) not in child.arguments()
