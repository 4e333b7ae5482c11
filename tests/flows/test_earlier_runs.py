"""A run folder that commit b88d672 made, in today's hands: read, left as it is, and continued with the same outputs.

tests/fixtures/README.md describes how it was made. The weights, and the boxes that a teacher draws,
depend on how the machine rounds, so they are compared with a tolerance, and everything else byte
for byte. With SAME_BYTES=1 in the environment all of it is compared byte for byte: for a machine
that rounds as the one that made the run did.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from pipeline.io.hashing import digest_file
from tests.flows.tiny import ROOT, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FIXTURES = ROOT / "tests" / "fixtures"
RUN = FIXTURES / "run-b88d672.tar.xz"
MADE = json.loads((FIXTURES / "run-b88d672.json").read_text())
"""Settings and digests of the outputs."""
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
"""This tree's commands: those that are installed may be another tree's."""
STORES = ("data", "train", "phrases", "checkpoints", "regions", "labels", "pseudo", "evaluation")
BY_TRAINED_MODELS = ("checkpoints/", "regions/", "labels/", "pseudo/", "evaluation/")
"""Outputs whose bytes depend on how the machine rounds."""
WRITTEN_ANYWAY = (".dataset.json", "promotion.json")
"""Small files that b88d672, too, writes each time, with the same bytes."""
STEP = "step-00000003"
MODEL_SETTINGS = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
"""Files of a model folder that training does not change."""
SAME_BYTES = os.environ.get("SAME_BYTES") == "1"


def is_measured(name: str) -> bool:
    """Whether a file is computed from kept predictions, which each version of the metrics does anew."""
    return name.startswith("evaluation/") and "/predictions/" not in name


def outputs(run: Path) -> dict[str, str]:
    """Digests of what data and settings alone decide."""
    files = (p for store in STORES for p in sorted((run / store).rglob("*")) if p.is_file())
    skipped = {"tensorboard", "plots"}  # of times; and the plots, that the archive may be small
    told = ((p, p.relative_to(run)) for p in files)
    return {r.as_posix(): digest_file(p) for p, r in told if not skipped & set(r.parts) and ".claim" not in p.name}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The archive's contents: ``bert`` (a text encoder that the settings name by this relative
    path), ``run``, ``interrupted``."""
    with tarfile.open(RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    yield tmp_path
    shutil.rmtree(tmp_path / "prefect", ignore_errors=True)


def python(folder: Path, code: str, *arguments: str) -> str:
    """Output of a program, run in the folder that the settings' paths are relative to."""
    env = environment(
        folder / "prefect",
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-5000:]
    return said


def command(folder: Path, name: str, *arguments: str) -> str:
    """One of the project's commands, as its script would run it."""
    module, _, function = SCRIPTS[name].partition(":")
    start = f"import sys; from {module} import {function} as main; sys.argv[0] = {name!r}; main()"
    return python(folder, start, *arguments)


def self_train(folder: Path) -> str:
    """The command that made the run."""
    changes = [part for change in MADE["changes"] for part in ("--set", change)]
    return command(folder, "self-train", "run", "--recipe", "demo", "--out", "run", *changes)


def near_weights(now: Path, then: Path, before: Path) -> None:
    """Weights differ far less from the earlier run's than its training moved them since ``before``."""
    new, old, first = (load_file(p) for p in (now, then, before))
    assert {n: (w.shape, w.dtype) for n, w in new.items()} == {n: (w.shape, w.dtype) for n, w in old.items()}
    apart = sum(np.abs(new[n] - old[n]).sum() for n in old)
    moved = sum(np.abs(old[n] - first[n]).sum() for n in old)
    assert moved > 0 and apart < 1e-3 * moved, f"{apart / moved:.5f} of the way"


def assert_same_settings(now: Path, then: Path) -> None:
    """Every setting of the earlier file has its value; today's may have more."""

    def kept(old: object, new: object) -> bool:
        if isinstance(old, dict) and isinstance(new, dict):
            return all(name in new and kept(value, new[name]) for name, value in old.items())
        return old == new

    assert kept(json.loads(then.read_text()), json.loads(now.read_text())), now


def near_tables(now: Path, then: Path) -> None:
    """The same boxes, but for a few at the edge of what is kept, and for the last digits."""
    new, old = (pq.read_table(p) for p in (now, then))
    assert new.schema.remove_metadata() == old.schema.remove_metadata()
    rows = [{(r["key"], r["phrase_row"], r["rank"]): r for r in t.to_pylist()} for t in (new, old)]
    both = rows[0].keys() & rows[1].keys()
    assert len(both) > 0.9 * max(map(len, rows))
    close = sum(
        np.allclose(
            [rows[0][k][c] for c in ("x1", "y1", "x2", "y2")],
            [rows[1][k][c] for c in ("x1", "y1", "x2", "y2")],
            atol=0.5,
        )
        and np.isclose(rows[0][k]["score"], rows[1][k]["score"], atol=1e-3)
        for k in both
    )
    assert close > 0.9 * len(both), f"{close} of {len(both)}"


def test_a_finished_run_is_left_as_it_is(folder):
    run = folder / "run"
    assert outputs(run) == MADE["sha256"]  # the archive is what it says

    def state() -> dict[str, tuple[int, str]]:
        files = [p for store in STORES for p in sorted((run / store).rglob("*")) if p.is_file()]
        states = {p.relative_to(run).as_posix(): (p.stat().st_mtime_ns, digest_file(p)) for p in files}
        return {name: state for name, state in states.items() if not is_measured(name)}

    before, told = state(), json.loads((run / "summary.json").read_text())
    self_train(folder)
    after = state()
    assert after.keys() == before.keys()
    assert {n for n in before if after[n][1] != before[n][1]} == set()
    touched = {n for n in before if after[n][0] != before[n][0]}
    assert {n for n in touched if not n.endswith(WRITTEN_ANYWAY)} == set()
    now = json.loads((run / "summary.json").read_text())
    for model in ("teacher", "control", "student", "chance"):
        assert now[model] == told[model], model
    for name, stage in now["stages"].items():
        if "report" in stage:
            assert stage["report"]["skipped"] > 0 and (stage["report"]["done"], stage["report"]["failed"]) == (0, []), (
                name
            )


def test_an_interrupted_run_ends_with_the_same_outputs(folder):
    run, then = folder / "run", folder / "then"
    run.rename(then)
    shutil.copytree(folder / "interrupted", run)
    shutil.copy(then / "config.yaml", run)  # as a run writes it first: its warm-up is longer than its trainings
    assert [p.name for p in (run / "checkpoints" / "teacher").iterdir()] == [STEP]
    self_train(folder)
    log = (run / "logs" / "train-teacher.log").read_text()
    assert "resuming from step 3" in log, log
    found = outputs(run)
    assert found.keys() == MADE["sha256"].keys()
    differ = {n for n, digest in found.items() if digest != MADE["sha256"][n]}
    differ = {n for n in differ if not is_measured(n) and not n.endswith(MODEL_SETTINGS)}
    assert not {n for n in differ if SAME_BYTES or not n.startswith(BY_TRAINED_MODELS)}
    for name in found:
        if name.endswith(MODEL_SETTINGS):
            assert_same_settings(run / name, then / name)
    final = "checkpoints/teacher/final/model.safetensors"
    before = folder / "interrupted" / "checkpoints" / "teacher" / STEP / "model" / "model.safetensors"
    near_weights(run / final, then / final, before)


def test_a_teacher_trained_anew_has_the_same_weights(folder):
    job = (  # the command refuses the recipe's warm-up, which is longer than the training
        "from pipeline.config.recipes import load_recipe; from pipeline.stages import TrainModel;"
        "sources = {n: [f'run/train/{n}-*.tar'] for n in ('detection', 'grounding', 'attributes')};"
        "recipe = load_recipe('run/config.yaml');"
        "TrainModel(settings=recipe.teacher, sources=sources, model=recipe.model, threads=1, out='anew').run()"
    )
    python(folder, job)
    now, then = folder / "anew" / "final", folder / "run" / "checkpoints" / "teacher" / "final"
    step = folder / "interrupted" / "checkpoints" / "teacher" / STEP / "model" / "model.safetensors"
    near_weights(now / "model.safetensors", then / "model.safetensors", step)
    assert not SAME_BYTES or digest_file(now / "model.safetensors") == digest_file(then / "model.safetensors")
    for name in MODEL_SETTINGS:
        assert_same_settings(now / name, then / name)


def test_labels_and_shards_made_anew_are_the_same(folder):
    run, recipe = folder / "run", ("--recipe", "run/config.yaml")
    crawl = ("--shards", "run/data/crawl/{00000..00001}.tar")
    teacher = ("--teacher", "run/checkpoints/teacher/final")
    command(folder, "parse-phrases", *recipe, *crawl, "--out", "anew/phrases")
    command(
        folder,
        "pseudo-label",
        *recipe,
        *crawl,
        "--phrases",
        "anew/phrases",
        *teacher,
        "--workers",
        "1",
        "--out",
        "anew/regions/round-1",
    )
    command(folder, "filter-boxes", *recipe, "--regions", "run/regions/round-1", "--out", "anew/labels/round-1")
    command(
        folder, "build-shards", *recipe, *crawl, "--phrases", "anew/phrases", "--labels", "anew/labels/round-1",
        "--out", "anew/pseudo/round-1",
    )  # fmt: skip
    found = outputs(folder / "anew")
    wanted = {n: d for n, d in MADE["sha256"].items() if n.startswith(("phrases/", "regions/", "labels/", "pseudo/"))}
    assert found.keys() == wanted.keys()
    differ = {n for n, digest in found.items() if digest != wanted[n]}
    assert not {n for n in differ if SAME_BYTES or not n.startswith("regions/")}
    for then in (run / "regions" / "round-1").glob("*.parquet"):
        near_tables(folder / "anew" / "regions" / "round-1" / then.name, then)
