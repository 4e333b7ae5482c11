"""A training whose folder is not empty: it resumes, starts anew or is refused, and loses no checkpoint
of another."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest

from pipeline.config import ModelConfig, NoisyLabelConfig, PromptConfig, TrainConfig
from pipeline.data.records import DatasetCard, GroundingRecord, Region
from pipeline.errors import InputError, RunError
from pipeline.execution import folder_lock as alone
from pipeline.execution.progress import Silent
from pipeline.io.tars import write_tar
from pipeline.stages.jobs import TrainModel
from pipeline.training.checkpoints import read_state
from pipeline.training.report import read_report
from pipeline.training.run_identity import MEMORY_SETTINGS, RUNTIME_SETTINGS, Identity
from tests.conftest import TINY_TEXT_ENCODER, tiny_text_encoder
from tests.fixtures.crawl import jpeg
from tests.fixtures.training import NAMES, poison, write_sources
from tests.flows.tiny import ROOT
from tests.pipeline.stages.test_train import CONFIG, KillAt, Killed, files, run

FREE_AT_FIRST = {"save_every": 1, "freeze_text_layers": 1, "steps": 6, "batch_size": 1, "seed": 1}
"""Settings under which the first step draws no caption with the poisoned word."""


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[str]]:
    return write_sources(tmp_path / "train")


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO, "glip_self_train")
    return caplog


def changed(**settings) -> TrainConfig:
    return CONFIG.model_copy(update=settings)


def names(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir() if "step-" in p.name)


def stop(sources, out: Path, config: TrainConfig = CONFIG, after: int = 3) -> None:
    with pytest.raises(Killed):
        run(sources, out, config, progress=KillAt(after))


def swapped(sources: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same sources with other pseudo-labels, as a new teacher would make them: a shard of the
    same name, once more in it."""
    folder = Path(sources["pseudo"][0]).parents[1] / "other"
    folder.mkdir(exist_ok=True)
    shutil.copy(sources["pseudo"][0], folder / "pseudo-000001.tar")
    return {**sources, "pseudo": [*sources["pseudo"], str(folder / "pseudo-000001.tar")]}


def test_settings_that_only_say_how_it_runs_may_change_on_the_way(sources, tmp_path, told):
    run(sources, tmp_path / "whole")
    others = {"save_every": 1, "keep_checkpoints": 3, "log_every": 2, "draw_every": 3, "max_skipped_steps": 7}
    others |= {"check_memory": False, "validate_images": 3, "best_metric": "loss_reg"}
    assert others.keys() | {"gradient_checkpointing", "validate_every"} == RUNTIME_SETTINGS
    stop(sources, tmp_path / "out")
    run(sources, tmp_path / "out", changed(**others))
    assert "resuming from step 2" in told.text
    assert files(tmp_path / "out" / "final") == files(tmp_path / "whole" / "final")


def test_after_a_loss_that_was_not_finite_the_run_goes_on_from_where_it_stopped(sources, tmp_path, teacher, told):
    init, config = str(poison(teacher, tmp_path / "poisoned")), changed(**FREE_AT_FIRST)
    with pytest.raises(RunError, match=r"step (\d+): non-finite loss") as error:
        TrainModel(settings=config, sources=sources, out=tmp_path / "o", init=init).run()
    step = int(str(error.value).split()[1].rstrip(":"))
    saved = names(tmp_path / "o")
    assert step > 0 and saved, "the poisoned word came first; the test wants a checkpoint before it"
    report = TrainModel(
        settings=config.model_copy(update={"max_skipped_steps": 6}), sources=sources, out=tmp_path / "o", init=init
    ).run()
    assert f"resuming from step {step}" in told.text and report.skipped_steps >= 1


def test_other_settings_than_the_unfinished_training_has_are_refused_and_nothing_is_lost(sources, tmp_path):
    stop(sources, tmp_path / "out")
    before = names(tmp_path / "out")
    with pytest.raises(InputError) as error:
        run(sources, tmp_path / "out", changed(learning_rate=5e-4, prompt=PromptConfig(max_negatives=3)))
    for part in (
        f"{tmp_path / 'out'}: an unfinished training with other settings is here (step 2, step-00000002)",
        "learning_rate 0.0005 (before: 0.001); prompt.max_negatives 3 (before: 2).",
        "another --out",
    ):
        assert part in str(error.value)
    assert names(tmp_path / "out") == before == ["step-00000002"]


def test_another_network_or_beginning_is_a_setting_too(sources, tmp_path, teacher):
    stop(sources, tmp_path / "out")
    with pytest.raises(InputError, match=r"now: an initial model \(before: no initial model\)\. Want"):
        TrainModel(settings=CONFIG, sources=sources, out=tmp_path / "out", init=str(teacher)).run()


def test_changed_data_begin_anew_and_the_old_checkpoints_wait_until_it_has_finished(sources, tmp_path, told):
    new = swapped(sources)
    run(new, tmp_path / "whole")
    stop(sources, tmp_path / "out")
    old = read_state(tmp_path / "out" / "step-00000002")
    stop(new, tmp_path / "out")
    assert "starting from the beginning: source pseudo changed since the unfinished training here (step 2)" in told.text
    aside, mine = names(tmp_path / "out")
    assert aside.startswith("aside-") and mine == "step-00000002" and read_state(tmp_path / "out" / aside) == old
    told.clear()
    run(new, tmp_path / "out")
    assert "resuming from step 2" in told.text
    assert files(tmp_path / "out" / "final") == files(tmp_path / "whole" / "final")
    assert names(tmp_path / "out") == []


def other_folder(sources, name: str = "pseudo-000000.tar") -> list[str]:
    """The shards of ``pseudo`` with one in another folder behind them: of the given name, and of other content."""
    (first,) = sources["pseudo"]
    other = Path(first).parents[1] / "other" / name
    other.parent.mkdir(exist_ok=True)
    record = GroundingRecord(
        key="q0", dataset="pseudo", kind="grounding", image_size=(64, 80), caption="a dog",
        regions=(Region(box=(5, 5, 50, 50), phrase="a dog", tokens_positive=((0, 5),), score=0.5, annotator="glip@0"),),
    )  # fmt: skip
    write_tar(other, [("q0", {"jpg": jpeg(7), "json": record.to_json()})])
    return [first, str(other)]


def test_shards_in_another_order_are_changed_data(sources, tmp_path, told):
    """The order of records depends on the places of their shards: to go on would train other samples without a word."""
    there = other_folder(sources)
    stop({**sources, "pseudo": there}, tmp_path / "out")
    turned = {**sources, "pseudo": there[::-1]}
    run(turned, tmp_path / "whole")
    run(turned, tmp_path / "out")
    assert "starting from the beginning: source pseudo changed" in told.text and "resuming" not in told.text
    assert files(tmp_path / "out" / "final") == files(tmp_path / "whole" / "final")


@pytest.mark.parametrize("changed_one", [0, 1])
def test_a_change_in_either_of_two_shards_of_one_name_is_seen(sources, tmp_path, changed_one):
    there = {**sources, "pseudo": other_folder(sources)}
    before = Identity.of(CONFIG, there, model=ModelConfig(), init=None)
    assert before == Identity.of(CONFIG, there, model=ModelConfig(), init=None)
    shutil.copy(there["pseudo"][1 - changed_one], there["pseudo"][changed_one])
    after = Identity.of(CONFIG, there, model=ModelConfig(), init=None)
    assert after.fingerprint != before.fingerprint and after.changed_data(before) == ["source pseudo"]


def test_a_training_that_packs_captions_is_not_continued_from_before_the_rest_were_tried(sources):
    packs = CONFIG.model_copy(update={"noisy": NoisyLabelConfig(caption_negatives=0.5)})
    plain, packing = (Identity.of(c, sources, model=ModelConfig(), init=None) for c in (CONFIG, packs))
    assert "packing" not in plain.settings["noisy"]  # trainings that pack none go on
    noisy = {k: v for k, v in packing.settings["noisy"].items() if k != "packing"}
    before = packing.model_copy(update={"settings": packing.settings | {"noisy": noisy}})
    assert packing.fingerprint != before.fingerprint
    assert packing.changed_settings(before) == ["noisy.packing 2 (before: null)"]


def test_other_class_names_are_other_data_and_those_of_other_sets_are_not(sources, tmp_path, told):
    folder = Path(sources["detection"][0]).parent

    def card(name: str, *names: str) -> None:
        text = DatasetCard(name=name, kind="detection", label_space=names).model_dump_json()
        (folder / f"{name}.dataset.json").write_text(text)

    stop(sources, tmp_path / "out")
    card("unread", "zebra")
    stop(sources, tmp_path / "out", after=1)
    assert "resuming from step 2" in told.text and "from the beginning" not in told.text
    card("detection", *NAMES, "zebra")  # a negative more
    run(sources, tmp_path / "out")
    assert (
        "starting from the beginning: class names of detection changed since the unfinished training here" in told.text
    )


def test_the_first_data_again_go_on_with_what_stepped_aside(sources, tmp_path, told):
    whole = run(sources, tmp_path / "whole")
    stop(sources, tmp_path / "out")
    stop(swapped(sources), tmp_path / "out")
    told.clear()
    assert run(sources, tmp_path / "out") == whole
    assert "resuming from step 2" in told.text


def test_a_finished_training_is_done_again_when_data_or_settings_change_and_says_why(sources, tmp_path, told):
    run(sources, tmp_path / "out")
    told.clear()
    run(swapped(sources), tmp_path / "out", changed(seed=1))
    assert "starting from the beginning: seed 1 (before: 0); source pseudo" in told.text
    told.clear()
    run(swapped(sources), tmp_path / "out", changed(seed=1, log_every=3))
    assert "already trained for 5 steps" in told.text


def test_micro_batches_may_change_on_the_way_and_it_is_told(sources, tmp_path, told):
    assert "accumulate" in MEMORY_SETTINGS
    stop(sources, tmp_path / "out")
    report = run(sources, tmp_path / "out", changed(accumulate=2))
    assert (
        "resuming from step 2" in told.text and "accumulate 2 (before: 1): same samples in the same order" in told.text
    )
    told.clear()
    run(sources, tmp_path / "out")
    assert "starting from the beginning: accumulate 1 (before: 2)" in told.text  # done, and the result is another one
    assert report.curve != read_report(tmp_path / "out").curve


def test_a_report_that_cannot_be_read_is_no_end(sources, tmp_path, told):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text('{"steps": 1}')
    assert run(sources, tmp_path / "out").steps == 5 and "not a training report" in told.text


ELSEWHERE = """
import json, sys
from pathlib import Path
from pipeline.execution.progress import Silent
from tests.pipeline.stages.test_train import run

class Waits(Silent):
    def advance(self, n, unit="samples"):
        if n:
            print("trains", flush=True)
            sys.stdin.readline()
            type(self).advance = Silent.advance

run(json.loads(sys.argv[1]), Path(sys.argv[2]), progress=Waits())
"""


@pytest.mark.slow
def test_a_training_that_goes_on_elsewhere_is_not_joined_and_its_end_is_noticed(sources, tmp_path, told, monkeypatch):
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(sources), str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    env = os.environ | {"PYTHONPATH": str(ROOT), TINY_TEXT_ENCODER: tiny_text_encoder()}
    with subprocess.Popen(command, cwd=ROOT, text=True, env=env, **pipes) as other:
        assert other.stdout is not None and other.stdin is not None and other.stdout.readline() == "trains\n"
        with monkeypatch.context() as impatient, pytest.raises(InputError) as error:
            impatient.setattr(alone, "PATIENCE", 1)
            run(sources, tmp_path / "out")
        assert f"out: another training works there (process {other.pid} on " in str(error.value)
        Timer(2, other.stdin.close).start()
        with pytest.raises(RunError, match="finished by other processes just now; start again for its report"):
            run(sources, tmp_path / "out")
        assert other.wait(60) == 0
    whole = run(sources, tmp_path / "whole")
    assert run(sources, tmp_path / "out") == whole
    assert files(tmp_path / "out" / "final") == files(tmp_path / "whole" / "final")
    assert not list((tmp_path / "out").glob(".*"))


class TakenOver(Silent):
    """After the first save another machine takes the folder, as if this process had been stopped for long."""

    def __init__(self, out: Path) -> None:
        self.claim, self.steps = out / ".training.claim", 0

    def advance(self, n: int, unit: str = "samples") -> None:
        self.steps += n
        if self.steps == 3:
            self.claim.write_text(json.dumps({"host": "elsewhere now", "pid": 7, "started": "1", "by": "x", "beat": 0}))


def test_a_training_that_lost_its_folder_writes_nothing_there(sources, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        RunError,
        match=r"out: another training took over \(process 7 on elsewhere\), as this one did not renew its claim",
    ):
        run(sources, out, progress=TakenOver(out))
    assert names(out) == ["step-00000002"] and not (out / "final").exists()
    assert json.loads((out / ".training.claim").read_text())["pid"] == 7


def test_a_compiled_training_is_another_result_and_an_eager_one_the_earlier_versions_own():
    plain, fast = (Identity.of(changed(compile=c), {}, model=ModelConfig(), init=None) for c in ("off", "auto"))
    assert plain.fits == {"accumulate": 1} and "compile" not in plain.settings
    assert plain.fingerprint == fast.fingerprint and plain.result_fingerprint != fast.result_fingerprint
