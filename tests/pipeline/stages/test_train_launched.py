"""``accelerate launch``: killed at random steps, on one process and on two, DDP and FSDP2.

Most trainings are forked from a process that has the imports (the fixture ``launch``). One of each
kind (one process, DDP, FSDP2) is started by the real launcher (``training.launch``), and goes on
with, or is compared with, what a forked one wrote.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model import GlipForObjectDetection
from pipeline.config import ModelConfig, NoisyLabelConfig, PromptConfig, TrainConfig
from pipeline.training.report import TrainReport
from tests.conftest import tiny_model
from tests.fixtures import training
from tests.fixtures.forkserver import ForkServer
from tests.fixtures.training import poison, write_sources
from tests.fixtures.warm_launch import PRELOADED

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(
    steps=9, batch_size=4, learning_rate=1e-3, warmup_steps=2, image_sizes=(64,), max_image_size=128, ema=0.9,
    mixture={"detection": 1, "pseudo": 1}, prompt=PromptConfig(max_negatives=2), save_every=2, log_every=1,
)  # fmt: skip
CALM = CONFIG.model_copy(
    # half of the boxes teach no position: the processes' batches differ in whether they have any that does
    update={"steps": 4, "learning_rate": 1e-4, "noisy": NoisyLabelConfig(regress_above=0.8, score_weight=True)}
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return write_sources(tmp_path_factory.mktemp("launched") / "train")


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., TrainReport | None]]:
    """:func:`tests.fixtures.training.launch` in forked processes."""
    warm = ForkServer(*PRELOADED)
    yield functools.partial(training.launch, warm=warm)
    warm.close()


def without_dropout() -> ModelConfig:
    model = tiny_model(ModelConfig)
    settings = {**model.settings, "drop_block_prob": 0.0, "fusion_dropout": 0.0}
    settings["backbone_config"] = {**settings["backbone_config"], "drop_path_rate": 0.0}
    return model.model_copy(update={"settings": settings, "text_dropout": 0.0})


@pytest.fixture(scope="module")
def alone(launch, sources, tmp_path_factory):
    """CALM on one process, without dropout: its report and folder."""
    out = tmp_path_factory.mktemp("alone")
    return launch(out, CALM, sources, model=without_dropout()), out


def weights(out: Path, name: str = "final") -> dict[str, torch.Tensor]:
    return load_file(out / name / "model.safetensors")


def assert_alike(report, out: Path, other_report, other_out: Path) -> None:
    """Curves to 1e-5 of their values, weights to 1e-5."""
    assert len(report.curve) == len(other_report.curve)
    for row, other in zip(report.curve, other_report.curve, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=2e-6)
    for name in ("final", "final_ema"):
        mine, others = weights(out, name), weights(other_out, name)
        assert mine.keys() == others.keys()
        assert max(float((mine[n] - others[n]).abs().max()) for n in mine) <= 1e-5


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_steps_it_ends_as_an_undisturbed_one(launch, sources, tmp_path, processes):
    model = tiny_model(ModelConfig)
    whole = launch(tmp_path / "whole", CONFIG, sources, model=model, processes=processes)
    steps = sorted(random.sample(range(1, CONFIG.steps), 3))
    print("killed after steps", steps)
    for step in steps:
        launch(tmp_path / "killed", CONFIG, sources, model=model, processes=processes, kill_after=step)
    again = training.launch(tmp_path / "killed", CONFIG, sources, model=model, processes=processes)
    assert again == whole, steps
    for name in ("final", "final_ema"):
        mine, other = weights(tmp_path / "killed", name), weights(tmp_path / "whole", name)
        assert all(mine[n].equal(other[n]) for n in other) and mine.keys() == other.keys(), steps


def test_two_processes_train_as_one_with_the_same_global_batch(launch, alone, sources, tmp_path):
    report = launch(tmp_path / "two", CALM, sources, model=without_dropout(), processes=2)
    assert_alike(report, tmp_path / "two", *alone)
    assert report.lost == alone[0].lost


def test_a_run_of_two_processes_goes_on_as_one(launch, alone, sources, tmp_path):
    launch(tmp_path / "a", CALM, sources, model=without_dropout(), processes=2, kill_after=3)
    assert (tmp_path / "a" / "step-00000002").is_dir()
    report = launch(tmp_path / "a", CALM, sources, model=without_dropout(), processes=1)
    assert_alike(report, tmp_path / "a", *alone)


def test_fsdp2_trains_and_goes_on_as_one_process(launch, alone, sources, tmp_path):
    launch(tmp_path / "a", CALM, sources, model=without_dropout(), processes=2, fsdp=True, kill_after=3)
    report = training.launch(tmp_path / "a", CALM, sources, model=without_dropout(), processes=2, fsdp=True)
    assert_alike(report, tmp_path / "a", *alone)
    loaded = GlipForObjectDetection.from_pretrained(tmp_path / "a" / "final")
    assert loaded.config.architectures == ["GlipForObjectDetection"]
    assert all(loaded.state_dict()[n].equal(v) for n, v in weights(tmp_path / "a").items())


def test_bf16_under_fsdp2_computes_what_it_does_under_ddp(launch, sources, tmp_path, teacher):
    """accelerate's own policy would round boxes and gradients to bf16, and its CPU processes compute in float32.

    From a model folder, with frozen embeddings and in micro-batches: what FSDP2 might treat
    otherwise. At a size at which the boxes have more digits than bf16 holds.
    """
    changes = {"precision": "bf16", "steps": 2, "accumulate": 2, "freeze_text_layers": 1, "image_sizes": (73,)}
    config = CALM.model_copy(update=changes)
    kinds = dict.fromkeys(("ddp", "fsdp"), config) | {"float32": config.model_copy(update={"precision": "float32"})}
    reports = {
        name: launch(tmp_path / name, kind, sources, init=teacher, processes=2, fsdp=name == "fsdp")
        for name, kind in kinds.items()
    }
    first = {name: report.curve[0] for name, report in reports.items()}
    assert first["fsdp"] == pytest.approx(first["ddp"], rel=1e-5, abs=2e-6)
    assert first["fsdp"]["loss"] != pytest.approx(first["float32"]["loss"], rel=1e-5)
    assert reports["fsdp"].curve[1] == pytest.approx(reports["ddp"].curve[1], rel=2e-3, abs=1e-4)
    before, after = load_file(teacher / "model.safetensors"), weights(tmp_path / "fsdp")
    frozen = [n for n in before if n.startswith(("text_encoder.embeddings.", "text_encoder.encoder.layer.0."))]
    assert frozen and all(after[n].equal(before[n]) for n in frozen)
    assert all(value.dtype == before[n].dtype for n, value in after.items())


def test_steps_cannot_be_left_out_under_fsdp2_and_that_is_told(launch, sources, tmp_path):
    config = CALM.model_copy(update={"max_skipped_steps": 1})
    with pytest.raises(AssertionError, match=r"error: max_skipped_steps 1 under FSDP2: .*want 0, or DDP"):
        launch(tmp_path / "a", config, sources, model=without_dropout(), processes=2, fsdp=True)


def test_accumulated_steps_on_two_processes_train_as_the_same_slices_on_one(launch, sources, tmp_path):
    config = CALM.model_copy(update={"accumulate": 2})
    one = launch(tmp_path / "one", config, sources, model=without_dropout())
    two = launch(
        tmp_path / "two", config.model_copy(update={"batch_size": 4}), sources, model=without_dropout(), processes=2
    )
    assert_alike(two, tmp_path / "two", one, tmp_path / "one")


@pytest.mark.parametrize("fsdp", [False, True])
def test_processes_validate_together(launch, alone, sources, tmp_path, fsdp):
    (tmp_path / "held-out").mkdir()
    held_out = {"held_out": training.write_sources(tmp_path / "held-out" / "train")["detection"]}
    config = CALM.model_copy(update={"validate_every": 2, "validate_images": 4})
    options = {"model": without_dropout(), "validation": held_out}
    one = launch(tmp_path / "one", config, sources, **options)
    two = launch(tmp_path / "two", config, sources, processes=2, fsdp=fsdp, **options)
    assert_alike(two, tmp_path / "two", *alone)
    assert [row["step"] for row in two.validation] == [row["step"] for row in one.validation] != []
    for name in ("loss", "loss_dot_product_token", "loss_reg", "loss_centerness"):
        values = [[row[name] for row in report.validation] for report in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-3), name
    mine, other = weights(tmp_path / "two", "best"), weights(tmp_path / "one", "best")
    assert two.best["step"] == one.best["step"]
    assert max(float((mine[n] - other[n]).abs().max()) for n in other) <= 1e-5


def test_a_loss_that_is_not_finite_in_one_process_is_left_out_in_both(launch, sources, tmp_path, teacher):
    init = poison(teacher, tmp_path / "poisoned")
    config = CALM.model_copy(
        update={"steps": 6, "max_skipped_steps": 5, "freeze_text_layers": 1, "ema": None, "batch_size": 2}
    )
    reports = {n: launch(tmp_path / str(n), config, sources, init=init, processes=n) for n in (1, 2)}
    assert reports[1].skipped_steps == reports[2].skipped_steps >= 1
    assert [len(row) for row in reports[1].curve] == [len(row) for row in reports[2].curve]  # the same steps
    told = [p.read_text() for p in (tmp_path / "2").glob("nonfinite-*/rank-*.json")]
    assert len(told) == 2 * reports[2].skipped_steps and any("another process's was not" in text for text in told)


TRACKIO = """
from pathlib import Path

class Run:
    def __init__(self):
        self.rows = []
    def log(self, values, step=None):
        self.rows.append(f"{step} {sorted(values)}")
    def finish(self):
        there = Path(OUT, "final", "model.safetensors").is_file()
        Path(OUT, "tracked.txt").write_text("\\n".join([*self.rows, f"finished, model there: {there}"]))

class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)

config = Config()

def init(project):
    return Run()
"""


def test_a_tracker_ends_after_the_model_is_written_and_takes_no_process_with_it(sources, tmp_path):
    """A stand-in for the tracker's library, which is large; accelerate's side of it and ours are real."""
    out, packages = tmp_path / "two", tmp_path / "packages"
    (packages / "trackio-0.0.dist-info").mkdir(parents=True)
    (packages / "trackio-0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trackio\nVersion: 0.0\n")
    (packages / "trackio.py").write_text(f"OUT = {str(out)!r}\n{TRACKIO}")
    config = CALM.model_copy(update={"steps": 2, "batch_size": 2, "ema": None})
    training.launch(out, config, sources, model=without_dropout(), processes=2, tracker="trackio", packages=packages)
    rows = (out / "tracked.txt").read_text().splitlines()
    assert rows[0].startswith("1 [") and "train/loss" in rows[0] and len(rows) == 3
    assert rows[-1] == "finished, model there: True"
