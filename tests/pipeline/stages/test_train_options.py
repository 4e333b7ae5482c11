"""Options of a training: each does what it says, and none that only looks on changes a weight."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._inductor import config as inductor

from model import GlipForObjectDetection, GlipProcessor
from pipeline.config import ModelConfig
from pipeline.errors import InputError, RunError
from pipeline.stages.jobs import TrainModel, write_job
from tests.fixtures.training import ROOT, poison, write_sources
from tests.pipeline.stages.test_train import CONFIG, KillAt, Killed, files, run
from tests.pipeline.stages.test_train_launched import without_dropout


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[str]]:
    return write_sources(tmp_path / "train")


def changed(**settings):
    return CONFIG.model_copy(update=settings)


@pytest.fixture
def poisoned(teacher, tmp_path) -> str:
    return str(poison(teacher, tmp_path / "poisoned"))


def test_a_loss_that_is_not_finite_stops_the_run_and_the_batch_is_written(sources, tmp_path, poisoned):
    with pytest.raises(RunError, match=r"step \d+: non-finite loss.*the batch is in .*nonfinite-.*records: ") as error:
        TrainModel(settings=CONFIG, sources=sources, out=tmp_path / "o", init=poisoned).run()
    (folder,) = (tmp_path / "o").glob("nonfinite-*")
    told = json.loads((folder / "rank-0.json").read_text())
    assert any("dog" in caption for caption in told["captions"])
    assert len(told["records"]) == 2 and all(name in str(error.value) for name in told["records"])
    assert told["records"][0].split("/")[0] in {"detection-000000", "pseudo-000000"}
    (inputs,) = torch.load(folder / "rank-0.pt", weights_only=True)
    network = GlipForObjectDetection.from_pretrained(poisoned).train()
    with pytest.raises(FloatingPointError):
        network(**inputs)


def test_up_to_a_stated_number_of_such_steps_is_left_out_and_counted(sources, tmp_path, poisoned):
    config = changed(max_skipped_steps=5, freeze_text_layers=1, ema=0.5, steps=6)
    report = TrainModel(settings=config, sources=sources, out=tmp_path / "o", init=poisoned).run()
    assert 1 <= report.skipped_steps < 6 == len(report.curve)
    assert sum("loss" not in row for row in report.curve) == report.skipped_steps  # a row a step, as log_every is 1
    assert len(list((tmp_path / "o").glob("nonfinite-*"))) == report.skipped_steps
    for name in ("final", "final_ema"):
        after = load_file(tmp_path / "o" / name / "model.safetensors")
        assert all(v.isfinite().all() for n, v in after.items() if "word_embeddings" not in n)
    with pytest.raises(Killed):
        TrainModel(settings=config, sources=sources, out=tmp_path / "k", init=poisoned, progress=KillAt(5)).run()
    assert TrainModel(settings=config, sources=sources, out=tmp_path / "k", init=poisoned).run() == report
    assert files(tmp_path / "k" / "final") == files(tmp_path / "o" / "final")


def test_looking_on_changes_nothing(sources, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = run(sources, tmp_path / "plain")
    seen = run(sources, tmp_path / "seen", changed(draw_every=2), data_workers=1)
    mine, other = files(tmp_path / "seen" / "final"), files(tmp_path / "plain" / "final")
    assert seen.curve == plain.curve and mine["model.safetensors"] == other["model.safetensors"]
    events = EventAccumulator(str(tmp_path / "seen" / "tensorboard")).Reload()
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "train/data_wait_share"} <= set(
        events.Tags()["scalars"]
    )
    assert [e.step for e in events.Images("predictions_and_targets/1")] == [2, 4]
    assert events.Images("predictions_and_targets/0")[0].width == 960


def test_figures_between_log_lines_survive_a_kill(sources, tmp_path):
    config = changed(log_every=3, save_every=2, steps=6)
    whole = run(sources, tmp_path / "whole", config)
    with pytest.raises(Killed):
        run(sources, tmp_path / "killed", config, progress=KillAt(3))
    assert run(sources, tmp_path / "killed", config).curve == whole.curve


def test_gradient_checkpointing_gives_the_same_weights(sources, tmp_path):
    run(sources, tmp_path / "plain")
    run(sources, tmp_path / "again", changed(gradient_checkpointing=True))
    mine, other = (load_file(tmp_path / n / "final" / "model.safetensors") for n in ("plain", "again"))
    assert max(float((mine[n] - other[n]).abs().max()) for n in mine) < 1e-6


@pytest.mark.parametrize(("accumulate", "assigner"), [(2, "atss"), (4, "max_iou")])
def test_micro_batches_add_up_to_the_big_batch(sources, tmp_path, accumulate, assigner):
    """Records of one and of two boxes, in micro-batches of other numbers of positives each."""
    settings = {"batch_size": 4, "flip": 0.0, "learning_rate": 1e-4, "steps": 3}
    model = without_dropout()
    model = model.model_copy(update={"settings": {**model.settings, "assigner": assigner}})
    reports = []
    for pieces in (1, accumulate):
        out, config = tmp_path / str(pieces), changed(**settings, accumulate=pieces)
        reports.append(TrainModel(settings=config, sources=sources, out=out, model=model).run())
    big, small = reports
    for name in big.curve[0]:
        assert [r[name] for r in small.curve] == pytest.approx([r[name] for r in big.curve], rel=1e-4), name
    mine, other = (load_file(tmp_path / str(n) / "final" / "model.safetensors") for n in (1, accumulate))
    assert (
        max(float((mine[n] - other[n]).abs().max()) for n in mine) < 1e-4
    )  # Adam's first steps are of the rate's size


def validation_set(tmp_path: Path) -> dict[str, list[str]]:
    return {"held_out": write_sources(tmp_path / "validation")["detection"]}


@pytest.mark.slow
def test_validations_change_no_step_and_keep_the_best_model(sources, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = changed(
        validate_every=2, validate_images=5, steps=6, learning_rate=3e-3, best_metric="loss_reg", schedule="constant"
    )
    plain = run(sources, tmp_path / "plain", changed(steps=6, learning_rate=3e-3, schedule="constant"))
    report = run(sources, tmp_path / "seen", config, validation=validation_set(tmp_path))
    assert report.curve == plain.curve and not plain.validation and plain.best is None
    assert files(tmp_path / "seen" / "final") == files(tmp_path / "plain" / "final")
    assert [row["step"] for row in report.validation] == [2, 4, 6]
    assert report.best == min(report.validation, key=lambda row: row["loss_reg"])
    assert "validation" not in json.loads((tmp_path / "plain" / "report.json").read_text())
    best = load_file(tmp_path / "seen" / "best" / "model.safetensors")
    GlipProcessor.from_pretrained(tmp_path / "seen" / "best")
    until = changed(steps=int(report.best["step"]), learning_rate=3e-3, schedule="constant")  # the same steps as far
    run(sources, tmp_path / "until", until)
    other = load_file(tmp_path / "until" / "final" / "model.safetensors")
    assert all(best[name].equal(other[name]) for name in best)
    events = EventAccumulator(str(tmp_path / "seen" / "tensorboard")).Reload().Scalars("validation/loss")
    assert [e.step for e in events] == [2, 4, 6]
    assert [e.value for e in events] == pytest.approx([row["loss"] for row in report.validation], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [3, 5])
def test_a_killed_training_with_validations_ends_as_an_undisturbed_one(sources, tmp_path, killed_at):
    config, held_out = changed(validate_every=1, validate_images=4, steps=6), validation_set(tmp_path)
    whole = run(sources, tmp_path / "whole", config, validation=held_out)
    with pytest.raises(Killed):
        run(sources, tmp_path / "killed", config, validation=held_out, progress=KillAt(killed_at))
    again = run(sources, tmp_path / "killed", config, validation=held_out)
    assert again == whole and len(again.validation) == 6
    for name in ("final", "best"):
        assert files(tmp_path / "killed" / name) == files(tmp_path / "whole" / name)


@pytest.mark.parametrize(
    ("settings", "with_set", "words"),
    [({"validate_every": 2}, False, "want --set validate_every=STEPS and"), ({}, True, "found validate_every 0, 1 ")],
)
def test_validation_without_its_other_half_is_refused(sources, tmp_path, settings, with_set, words):
    held_out = validation_set(tmp_path) if with_set else {}
    with pytest.raises(InputError, match=words):
        run(sources, tmp_path / "o", changed(**settings), validation=held_out)


def test_validation_on_what_is_trained_on_is_refused(sources, tmp_path):
    with pytest.raises(InputError, match=r"detection-000000\.tar: is trained on too"):
        run(sources, tmp_path / "o", changed(validate_every=2), validation={"v": sources["detection"]})


def test_a_checkpoint_is_a_model_folder(sources, tmp_path):
    with pytest.raises(Killed):
        run(sources, tmp_path / "o", progress=KillAt(3))
    folder = tmp_path / "o" / "step-00000002" / "model"
    network, saved = GlipForObjectDetection.from_pretrained(folder), load_file(folder / "model.safetensors")
    assert all(saved[n].equal(v) for n, v in network.state_dict().items())
    GlipProcessor.from_pretrained(folder)


def test_a_checkpoint_of_another_network_is_told(sources, tmp_path):
    from pipeline.training.state_dict import load_weights

    network = GlipForObjectDetection.from_pretrained(_saved(sources, tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="holds other tensors than the network"):
        load_weights(network, tmp_path / "other.safetensors")


def _saved(sources, tmp_path) -> Path:
    run(sources, tmp_path / "s", changed(steps=1))
    return tmp_path / "s" / "final"


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"batch_size": 3, "accumulate": 2}, {}, "batch_size 3 cannot be shared by 1 processes times accumulate 2"),
        ({}, {"tracker": "wandb"}, "--log-with wandb: not installed; `pip install wandb` adds it"),
        ({"precision": "fp16"}, {}, "precision fp16 on a CPU: want bf16 or float32, or --device cuda"),
    ],
)
def test_what_cannot_be_is_told(sources, tmp_path, settings, options, message):
    from importlib.util import find_spec

    if options.get("tracker") == "wandb" and find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(InputError, match=message):
        run(sources, tmp_path / "o", changed(**settings), **options)


def test_a_new_networks_paths_are_asked_for():
    from pipeline.training.model_factory import build_model

    with pytest.raises(InputError, match=r"model.text_encoder: .*model.text_encoder=FOLDER"):
        build_model(ModelConfig(), None)
    with pytest.raises(InputError, match=r"model.backbone: nowhere.pth .*model.backbone=FILE"):
        build_model(ModelConfig(text_encoder="minilm", backbone="nowhere.pth"), None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.slow
def test_without_a_gpu_a_training_for_one_ends_in_one_line(sources, tmp_path):
    job = TrainModel(settings=CONFIG, sources=sources, out=tmp_path / "o", device="cuda")
    write_job(tmp_path / "job.json", job)
    command = [sys.executable, "-m", "pipeline", "run-job", str(tmp_path / "job.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "o").exists()
    assert done.stderr.splitlines()[-1].startswith(
        "run-job: error: --device cuda: torch finds no GPU here; want --device cpu"
    )


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    from pipeline.training.distributed import check_device

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_device("cuda", "fp16")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="process 3 of this machine has no GPU, torch finds 2 here"):
        check_device("cuda", "bf16")


def test_the_log_says_what_a_training_runs_on(sources, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "glip_self_train"):
        run(sources, tmp_path / "o", changed(steps=1))
    assert "training in 1 process, cpu, float32" in caplog.messages


@pytest.mark.slow
def test_a_recipe_for_many_gpus_is_refused_in_one_line_before_it_allocates(sources, tmp_path):
    """64 images of GLIP-L need hundreds of GiB: the kernel would kill the process."""
    (tmp_path / "swin.pth").touch()
    options = [f"--source={name}={shards[0]}" for name, shards in sources.items()]
    command = [sys.executable, "-m", "pipeline", "train-student", "--recipe", "glip_l", "--set", "mixture={}", *options]
    command += ["--text-encoder", "minilm", "--backbone", str(tmp_path / "swin.pth"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("train-student: error: "))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "64 images of 800x1344 in a batch need about " in line and "GiB available; want " in line
    assert not list(tmp_path.glob("out/step-*"))


def test_a_batch_beyond_the_memory_names_the_accumulation_that_fits(sources, tmp_path):
    """Sizes so large that every machine has too little for the batch."""
    big = changed(batch_size=1 << 20, image_sizes=(64,), max_image_size=128)
    with pytest.raises(InputError, match=r"images of 64x128 in a batch need .*want --set accumulate=\d+ \(the same"):
        run(sources, tmp_path / "o", big)
    with pytest.raises(InputError, match="want --set gradient_checkpointing=true, smaller image_sizes"):
        run(sources, tmp_path / "o", changed(image_sizes=(1 << 15,), max_image_size=1 << 15))


@pytest.mark.slow
def test_a_training_set_to_compile_without_a_compiler_goes_on_from_another(sources, tmp_path, caplog):
    """One warning, a note of the change, and the names and numbers of the eager training."""
    caplog.set_level(logging.INFO, "glip_self_train")
    config = changed(ema=0.5, gradient_checkpointing=True, steps=4, save_every=2)
    plain = run(sources, tmp_path / "plain", config)
    with pytest.raises(Killed):
        run(sources, tmp_path / "out", config, progress=KillAt(3))
    caplog.clear()
    without = inductor.patch({"cpp.cxx": (None, "/nonexistent/g++")})
    with torch.compiler.config.patch(force_disable_caches=True), without:
        report = run(sources, tmp_path / "out", config.model_copy(update={"compile": "auto"}))
    assert report.curve == plain.curve and "resuming from step 2" in caplog.text
    assert caplog.text.count("training: not compiled, computed eagerly") == 1
    assert 'compile "auto" (before: null): same samples in the same order' in caplog.text
    for name in ("final", "final_ema"):
        mine, other = (load_file(tmp_path / n / name / "model.safetensors") for n in ("out", "plain"))
        assert mine.keys() == other.keys() and all(torch.equal(mine[n], other[n]) for n in mine)
