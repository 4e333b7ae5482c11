"""fp16's loss scaler on a CPU: torch's own scaler and accelerate's optimiser, in a training whose
forward pass stays float32."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState

from pipeline.config import ModelConfig, TrainConfig
from pipeline.errors import RunError
from pipeline.execution.progress import Silent
from pipeline.training.report import TrainerState
from pipeline.training.run_identity import Identity
from pipeline.training.trainer import Trainer
from tests.conftest import tiny_model
from tests.fixtures.training import write_sources
from tests.pipeline.stages.test_train import CONFIG, KillAt, Killed, files


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[str]]:
    return write_sources(tmp_path / "train")


class Scaled:
    """Makes trainings whose losses a real scaler scales, and whose gradients are not finite in
    stated steps (from 0)."""

    def __init__(self, sources, patch: pytest.MonkeyPatch) -> None:
        self.sources, self.patch, self.held = sources, patch, ExitStack()

    def __call__(self, out: Path, config: TrainConfig, bad=(), progress=None) -> Trainer:
        model, config = tiny_model(ModelConfig), config.model_copy(update={"precision": "float32"})
        out.mkdir(exist_ok=True)
        self.patch.undo()  # accelerate's state is the process's, and what the training before was told
        self.held.close()  # the training before has ended, or was killed
        trainer = Trainer(
            config, self.sources, out, Identity.of(config, self.sources, model=model, init=None), model=model,
            init=None, device="cpu", data_workers=0, tracker=None, validation={}, progress=progress or Silent(),
            exit_stack=self.held,
        )  # fmt: skip
        self._add_scaler(trainer)
        step = [-1]
        real = trainer._step
        trainer._step = lambda now, batches: (step.__setitem__(0, now), real(now, batches))[1]
        weight = trainer.network.head.dot_product_projection_text.weight
        weight.register_hook(lambda gradient: gradient * math.inf if step[0] in bad else gradient)
        return trainer

    def _add_scaler(self, trainer: Trainer) -> None:
        """What accelerate does where there is a GPU."""
        accelerator, scaler = trainer.accelerator, torch.amp.GradScaler("cpu")
        accelerator.scaler, accelerator.native_amp = scaler, True
        self.patch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
        trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, device_placement=False, scaler=scaler)
        trainer.scaler = scaler
        checkpoint = max(trainer.out.glob("step-*"), default=None)
        if checkpoint is not None:
            trainer.scaler.load_state_dict(
                TrainerState.model_validate_json((checkpoint / "trainer.json").read_bytes()).scaler
            )


@pytest.fixture
def scaled(sources, monkeypatch) -> Scaled:
    yield Scaled(sources, monkeypatch)
    monkeypatch.undo()
    AcceleratorState._reset_state(reset_partial_state=True)


def strict(file: Path):
    """The file's JSON, which has no Infinity."""

    def refuse(name: str):
        raise AssertionError(f"{file}: {name} is no JSON")

    return json.loads(file.read_text(), parse_constant=refuse)


def test_a_scalers_state_comes_back_from_a_file_as_it_was():
    scaler, weight = torch.amp.GradScaler("cpu"), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)

    def step(scaler: torch.amp.GradScaler) -> None:
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(scaler)
    fields = {"report": {"fingerprint": "", "steps": 1, "final": "", "records": {}, "lost": {}, "curve": []}}
    resumed = TrainerState.model_validate(
        {**fields, "sums": {}, "counted": 0, "averaged": 0, "scaler": scaler.state_dict()}
    )
    back = TrainerState.model_validate_json(json.dumps(resumed.model_dump(mode="json"))).scaler
    assert {k: (type(v), v) for k, v in back.items()} == {k: (type(v), v) for k, v in scaler.state_dict().items()}
    again = torch.amp.GradScaler("cpu")
    again.load_state_dict(back)
    step(again)
    assert again.state_dict()["_growth_tracker"] == 2


def test_overflowed_steps_are_in_no_figure_and_a_killed_run_ends_as_a_whole_one(scaled, tmp_path):
    config, bad = CONFIG.model_copy(update={"log_every": 2, "ema": 0.5}), {0, 3}
    whole = scaled(tmp_path / "whole", config, bad)
    report = whole.train()
    assert report.overflowed_steps == 2 and report.skipped_steps == 0
    assert whole.accelerator.scaler.get_scale() == 65536 / 4
    assert all(math.isfinite(v) for row in report.curve for v in row.values())
    assert whole.average.updates == 3
    strict(tmp_path / "whole" / "report.json")
    with pytest.raises(Killed):
        scaled(tmp_path / "killed", config, bad, KillAt(4)).train()
    strict(tmp_path / "killed" / "step-00000002" / "trainer.json")
    assert scaled(tmp_path / "killed", config, bad).train() == report
    for name in ("final", "final_ema"):
        assert files(tmp_path / "killed" / name) == files(tmp_path / "whole" / name)


def test_gradients_that_are_never_finite_stop_the_run(scaled, tmp_path):
    config = CONFIG.model_copy(update={"steps": 30, "batch_size": 1, "save_every": 30})
    with pytest.raises(RunError, match=r"step 16: gradient norm is (inf|nan); the batch is in .*nonfinite-00000016"):
        scaled(tmp_path / "out", config, range(30)).train()
    assert (tmp_path / "out" / "nonfinite-00000016" / "rank-0.pt").is_file()


def test_as_many_of_them_as_allowed_are_left_out_and_the_scale_stays(scaled, tmp_path):
    config = CONFIG.model_copy(update={"steps": 20, "batch_size": 1, "save_every": 30, "max_skipped_steps": 2})
    trainer = scaled(tmp_path / "out", config, range(18))
    report = trainer.train()
    assert (report.overflowed_steps, report.skipped_steps) == (16, 2)
    assert trainer.accelerator.scaler.get_scale() == 1
    assert "loss" in report.curve[-1]
