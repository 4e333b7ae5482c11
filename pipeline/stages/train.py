"""Train a teacher or a student on any mixture of human and pseudo labels.

One optimiser step is a function of (configuration, shards, initial weights, step): the order of records is
arithmetic (pipeline/training/order.py), rates are stateless, and checkpoints are atomic. A run that was killed goes on
from its newest whole checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pydantic import BaseModel, ConfigDict

from pipeline.config import ModelConfig, TrainConfig
from pipeline.errors import InputError, RunError
from pipeline.io.commit import write_json
from pipeline.io.hashing import digest_file, fingerprint, model_revision
from pipeline.progress import Progress, Silent
from pipeline.training.build import build_model
from pipeline.training.checkpoints import latest_checkpoint, prune, read_state, write_checkpoint
from pipeline.training.data import TrainingData
from pipeline.training.optim import make_optimizer, set_rates
from pipeline.training.order import generator

log = logging.getLogger("glip_self_train")
VERSION = 1


class TrainReport(BaseModel):
    """What a training run did. ``final`` is the model folder below the run's; ``curve`` has a row a log line."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    steps: int
    final: str
    records: dict[str, int]
    lost: dict[str, int]
    curve: list[dict[str, float]]


def run(
    config: TrainConfig,
    sources: Mapping[str, Sequence[str]],
    out: str | Path,
    *,
    model: ModelConfig | None = None,
    init: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainReport:
    """Train for ``config.steps`` and leave a model folder in ``out/final``.

    Args:
        sources: name -> training shards; the names are those of ``config.mixture``.
        model: what to build when starting from nothing; needed if ``init`` is absent.
        init: model folder to start from (the teacher of a warm-started student, a converted release).

    Raises:
        InputError: wrong mixture, shards or model folder.
        RunError: the loss is not finite; the message names the step and the records of the batch.
    """
    out = Path(out)
    if not sources or not all(sources.values()):
        raise InputError("no training shards: want at least one source, each with shards")
    mark = fingerprint(
        "train",
        version=VERSION,
        config=config,
        inputs={f"{n}/{Path(s).name}": digest_file(s) for n, shards in sorted(sources.items()) for s in shards},
        init=model_revision(init) if init else "",
        model="" if init else (model or ModelConfig()).model_dump_json(),
    )
    report_file = out / "report.json"
    if report_file.is_file():
        report = TrainReport.model_validate_json(report_file.read_bytes())
        if report.fingerprint == mark and read_state(out / "final") is not None:
            log.info("%s: already trained for %d steps", out, report.steps)
            return report
    out.mkdir(parents=True, exist_ok=True)
    return _Run(config, sources, out, model or ModelConfig(), init, device, progress or Silent(), mark).train()


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        sources: Mapping[str, Sequence[str]],
        out: Path,
        model: ModelConfig,
        init: str | None,
        device: str,
        progress: Progress,
        mark: str,
    ) -> None:
        precision = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}[config.precision]
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
        processes = self.accelerator.num_processes
        if config.batch_size % processes:
            raise InputError(
                f"batch_size {config.batch_size} cannot be shared by {processes} processes: want a multiple"
            )
        self.config, self.out, self.progress, self.mark = config, out, progress, mark
        set_seed(config.seed)
        self.network, self.processor = build_model(model, init)
        self.network.freeze(text_layers=config.freeze_text_layers, backbone_stages=config.freeze_backbone_stages)
        self.data = TrainingData(config, sources, self.processor)
        optimizer = make_optimizer(self.network, config)
        self.model, self.optimizer = self.accelerator.prepare(self.network, optimizer)
        self.ema = None
        if config.ema is not None:
            averaged = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
            self.ema = torch.optim.swa_utils.AveragedModel(self.network, multi_avg_fn=averaged)
            self.accelerator.register_for_checkpointing(self.ema)
        self.lost: dict[str, int] = {}
        self.curve: list[dict[str, float]] = []
        self.first = 0
        self._resume()

    def _resume(self) -> None:
        found = latest_checkpoint(self.out, self.mark)
        if found is None:
            return
        folder, self.first = found
        self.accelerator.load_state(str(folder / "state"))
        past = TrainReport.model_validate_json((folder / "report.json").read_bytes())
        self.lost, self.curve = past.lost, past.curve
        log.info("%s: going on from step %d", self.out, self.first)

    def train(self) -> TrainReport:
        config = self.config
        self.progress.begin("train", config.steps, unit="steps")
        self.progress.advance(self.first, "steps")
        self.model.train()
        board = self._tensorboard()
        loader = self.data.loader(
            first=self.first, rank=self.accelerator.process_index, processes=self.accelerator.num_processes
        )
        waited, began = 0.0, time.monotonic()
        sums: dict[str, float] = {}
        last = time.monotonic()
        for step, batch in zip(range(self.first, config.steps), loader, strict=False):
            waited += time.monotonic() - last
            losses = self._step(step, batch)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value
            self.progress.advance(1, "steps")
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                spent = time.monotonic() - began
                n = (done - 1) % config.log_every + 1
                self._tell(
                    done,
                    {k: v / n for k, v in sums.items()},
                    n * config.batch_size / spent,
                    waited / spent,
                    board,
                )
                waited, began = 0.0, time.monotonic()
                sums.clear()
            if done % config.save_every == 0 and done < config.steps:
                self._save(done)
            last = time.monotonic()
        return self._finish()

    def _step(self, step: int, batch: dict[str, Any]) -> dict[str, float]:
        for reason, n in batch.pop("lost").items():
            self.lost[reason] = self.lost.get(reason, 0) + n
        names = batch.pop("names")
        set_rates(self.optimizer, step, self.config)
        # dropout too is a function of the step: no restart, and nothing that draws in between, can change it
        torch.manual_seed(
            int(generator(self.config.seed, "step", step, self.accelerator.process_index).integers(2**63))
        )
        batch = _to(batch, self.accelerator.device)
        try:
            output = self.model(**batch)
        except FloatingPointError as error:
            raise RunError(f"step {step}: {error}; records: {', '.join(names)}") from None
        self.accelerator.backward(output.loss)
        norm = self.accelerator.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self.config.clip_grad_norm
        )
        if not bool(torch.isfinite(torch.as_tensor(norm))) and self.config.precision != "fp16":
            raise RunError(f"step {step}: gradient norm is {float(norm)}; records: {', '.join(names)}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.accelerator.unwrap_model(self.model))
        return {"loss": float(output.loss.detach()), "grad_norm": float(norm)} | {
            k: float(v.detach()) for k, v in output.loss_dict.items()
        }

    def _tell(self, done: int, means: dict[str, float], rate: float, wait: float, board: Any) -> None:
        self.curve.append({"step": done, **{k: round(v, 6) for k, v in means.items()}})
        if not self.accelerator.is_main_process:
            return
        log.info(
            "step %d of %d: loss %.4f, %.1f images/s, data wait %.0f%%",
            done, self.config.steps, means["loss"], rate, 100 * wait,
        )  # fmt: skip
        for name, value in {**means, "images_per_second": rate, "data_wait_share": wait}.items():
            board.add_scalar(f"train/{name}", value, done)
        board.flush()

    def _tensorboard(self) -> Any:
        if not self.accelerator.is_main_process:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.out / "tensorboard"), purge_step=self.first or None)

    def _report(self, steps: int) -> TrainReport:
        return TrainReport(
            fingerprint=self.mark,
            steps=steps,
            final="final",
            records=self.data.totals,
            lost=dict(sorted(self.lost.items())),
            curve=self.curve,
        )

    def _save(self, done: int) -> None:
        def fill(folder: Path) -> None:
            self.accelerator.save_state(str(folder / "state"))
            write_json(folder / "report.json", self._report(done).model_dump(mode="json"))

        if self.accelerator.is_main_process:
            write_checkpoint(self.out / f"step-{done:08d}", done, self.mark, fill)
            prune(self.out, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> TrainReport:
        report = self._report(self.config.steps)
        network = self.accelerator.unwrap_model(self.model)

        def fill(folder: Path) -> None:
            network.save_pretrained(folder)
            self.processor.save_pretrained(folder)

        def fill_ema(folder: Path) -> None:
            assert self.ema is not None
            self.ema.module.save_pretrained(folder)  # type: ignore[operator]
            self.processor.save_pretrained(folder)

        if self.accelerator.is_main_process:
            if self.ema is not None:
                write_checkpoint(self.out / "final_ema", self.config.steps, self.mark, fill_ema)
            write_checkpoint(self.out / "final", self.config.steps, self.mark, fill)
            write_json(self.out / "report.json", report.model_dump(mode="json"))
            prune(self.out, 0)
        self.accelerator.wait_for_everyone()
        return report


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, list):
        return [_to(v, device) for v in value]
    return value
