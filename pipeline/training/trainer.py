"""The training loop: batches in, steps, figures, checkpoints, and the model folders at the end."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device, set_seed

from pipeline.config import ModelConfig, TrainConfig
from pipeline.errors import InputError, RunError
from pipeline.execution.folder_lock import FolderLock, folder_lock
from pipeline.execution.progress import Progress
from pipeline.io.atomic import write_json
from pipeline.training import state_dict as state
from pipeline.training.checkpoints import clear, prune, write_checkpoint
from pipeline.training.dataset import TrainingData
from pipeline.training.distributed import Processes
from pipeline.training.image_batch import Normaliser
from pipeline.training.loss_scaler import LossScaler
from pipeline.training.model_factory import build_model
from pipeline.training.nonfinite import write_batch
from pipeline.training.optim import make_optimizer, set_rates
from pipeline.training.report import REPORT, TRAINER, Resumed, TrainReport
from pipeline.training.resume import find_checkpoint
from pipeline.training.run_identity import Identity
from pipeline.training.sample_images import predictions_beside_targets
from pipeline.training.sampling import generator
from pipeline.training.trackers import TrackerHub

log = logging.getLogger("glip_self_train")
NOT_INPUTS = {"lost", "names", "captions", "spans"}
"""What a batch tells about itself beside the network's inputs."""


class Trainer:
    """One run from its newest checkpoint, or its beginning, to its end; see :func:`pipeline.stages.train.run`.

    ``held`` keeps other trainings out of the folder until it is closed.
    """

    folder: FolderLock
    """Of the main process: ``out``, asked whether it is still ours before anything is saved."""

    def __init__(
        self,
        config: TrainConfig,
        sources: Mapping[str, Sequence[str]],
        out: Path,
        identity: Identity,
        *,
        model: ModelConfig,
        init: str | None,
        device: str,
        data_workers: int,
        tracker: str | None,
        progress: Progress,
        held: ExitStack,
    ) -> None:
        self.processes = Processes(device=device, precision=config.precision, tracker=tracker, folder=str(out))
        self.accelerator = self.processes.accelerator
        if self.processes.main:
            log.info("training in %s", self.processes.kind)
        pieces = self.processes.count * config.accumulate
        if config.batch_size % pieces:
            raise InputError(
                f"batch_size {config.batch_size} cannot be shared by {self.processes.count} processes times accumulate "
                f"{config.accumulate}: want a multiple of {pieces}"
            )
        if self.processes.sharded and config.max_skipped_steps:
            raise InputError(
                f"max_skipped_steps {config.max_skipped_steps} under FSDP2: its processes wait for each other for ever in the step "
                "after one that was left out; want 0, or DDP, which goes on from the same checkpoints"
            )
        self.config, self.out, self.identity, self.init = config, out, identity, init
        self.progress, self.data_workers, self.tracker = progress, data_workers, tracker
        found = self._find_beginning(held)
        set_seed(config.seed)
        self.network, self.processor = build_model(model, init)
        self.network.freeze(text_layers=config.freeze_text_layers, backbone_stages=config.freeze_backbone_stages)
        if config.gradient_checkpointing:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})
        self.normaliser = Normaliser(self.processor.image_processor)
        self.data = TrainingData(config, sources, self.processor)
        self.model, self.optimizer = self.processes.wrap(self.network, make_optimizer(self.network, config))
        self.network = self.accelerator.unwrap_model(self.model)
        self.average = state.Average(self.network, config.ema) if config.ema is not None else None
        self.scaler = LossScaler(self.accelerator.scaler)
        self.lost, self.new_lost = Counter[str](), Counter[str]()
        self.skipped = self.overflowed = self.first = self.counted = 0
        self.curve: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        if found is not None:
            self._resume(*found)

    def _find_beginning(self, held: ExitStack) -> tuple[Path, int] | None:
        """The main process's findings, which all of them go by; see :func:`pipeline.training.resume.find_checkpoint`."""
        found: tuple[Path, int] | None = None
        refused: InputError | RunError | None = None
        if self.processes.main:
            try:
                self.folder = held.enter_context(folder_lock(self.out, log.warning, name="training"))
                found = find_checkpoint(self.out, self.identity)
            except (InputError, RunError) as error:
                refused = error
        found, refused = self.processes.from_main((found, refused))
        if refused is not None:
            raise refused
        return found

    def _resume(self, folder: Path, step: int) -> None:
        past = Resumed.model_validate_json((folder / TRAINER).read_bytes())
        state.load_weights(self.network, folder / state.WEIGHTS)
        state.load_optimizer(self.optimizer, self.network, folder)
        if self.average is not None:
            self.average.load(folder / state.AVERAGE, past.averaged)
        self.scaler.load(past.scaler)
        self.lost, self.curve, self.skipped = Counter(past.report.lost), past.report.curve, past.report.skipped_steps
        self.overflowed = past.report.overflowed_steps
        self.first, self.sums, self.counted = step, past.sums, past.counted
        if self.processes.main:
            log.info("%s: going on from step %d", self.out, self.first)
            for change in self.identity.other_fits(past.report.run) if past.report.run else []:
                log.warning("%s: the same samples in the same order; micro-batches are normalised one by one, so the weights "
                            "will not be those of an unchanged run to the bit", change)  # fmt: skip

    def train(self) -> TrainReport:
        """All steps that are left; see :class:`TrainReport`."""
        config = self.config
        self.progress.begin("train", config.steps, unit="steps", before=self.first)
        self.model.train()
        board = TrackerHub(
            self.accelerator, self.out, first=self.first, settings=config.model_dump(mode="json"), tracker=self.tracker
        )
        loader = self.data.loader(
            first=self.first, rank=self.processes.rank, processes=self.processes.count,
            workers=self.data_workers, pin=self.accelerator.device.type == "cuda",
        )  # fmt: skip
        waited, taken, began = 0.0, 0, time.monotonic()
        for done in range(self.first + 1, config.steps + 1):
            asked = time.monotonic()
            batches = [next(loader) for _ in range(config.accumulate)]
            waited += time.monotonic() - asked
            taken += 1
            losses = self._step(done - 1, batches)
            if losses is not None:
                self.counted += 1
                for name, value in losses.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
            self.progress.advance(1, "steps")
            if done % config.log_every == 0 or done == config.steps:
                spent = time.monotonic() - began
                self._tell(
                    done,
                    taken * config.batch_size / spent,
                    waited / spent,
                    (config.steps - done) * spent / taken,
                    board,
                )
                waited, taken, began = 0.0, 0, time.monotonic()
            if done % config.save_every == 0 and done < config.steps:
                self._save(done)
            if config.draw_every and done % config.draw_every == 0:
                self._draw(done, batches[0], board)
        report = self._finish()
        board.close()
        return report

    def _step(self, step: int, batches: Sequence[dict[str, Any]]) -> dict[str, float] | None:
        """One optimiser step; None if it was left out because the loss or a gradient was not finite."""
        for batch in batches:
            self.new_lost.update(batch["lost"])
        set_rates(self.optimizer, step, self.config)
        inputs, pieces = [self._inputs(batch) for batch in batches], len(batches)
        values: dict[str, float] = {}
        for piece, given in enumerate(inputs):
            # dropout too is a function of the step: no restart, and nothing that draws in between, can change it
            parts = ("step", step, self.processes.rank) + ((piece,) if piece else ())
            torch.manual_seed(int(generator(self.config.seed, *parts).integers(2**63)))
            wrong = ""
            with self.processes.gradients_stay_here(self.model, piece < pieces - 1):
                try:
                    output = self.processes.forward(self.model, **given)
                except FloatingPointError as error:
                    wrong = str(error)
                if self.processes.any(bool(wrong)):
                    self._leave_out(step, batches, inputs, wrong)
                    return None
                self.accelerator.backward(output.loss if pieces == 1 else output.loss / pieces)
            found = {"loss": output.loss, **output.loss_dict}
            for name, value in found.items():
                values[name] = values.get(name, 0.0) + float(value.detach()) / pieces
        norm = self.processes.clip(self.model.parameters(), self.config.clip_grad_norm)
        if not math.isfinite(norm):
            self._not_finite(step, batches, inputs, norm)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        means = self.processes.means(values)
        return {"loss": means.pop("loss"), "grad_norm": norm, **means}

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the network takes of a batch, on its device."""
        given = {k: v for k, v in batch.items() if k not in NOT_INPUTS}
        given = send_to_device(given, self.accelerator.device, non_blocking=True)
        given["pixel_values"] = self.normaliser(given.pop("pixels"), batch["image_sizes"])
        return given

    def _not_finite(
        self, step: int, batches: Sequence[dict[str, Any]], inputs: Sequence[dict[str, Any]], norm: float
    ) -> None:
        """Leave out a step whose gradients are not finite; the scaler halves its scale, as long as that may help."""
        if not self.scaler.may_shrink:
            self.scaler.forget()
            self._leave_out(step, batches, inputs, f"gradient norm is {norm}")
            return
        self.optimizer.step()  # which the scaler leaves out
        self.optimizer.zero_grad(set_to_none=True)
        self.overflowed += 1
        if self.processes.main:
            log.info("step %d: gradients overflowed fp16; left out, and the loss scale is halved", step)

    def _leave_out(
        self, step: int, batches: Sequence[dict[str, Any]], inputs: Sequence[dict[str, Any]], wrong: str
    ) -> None:
        folder = write_batch(self.out, step, self.processes.rank, batches, wrong, inputs)
        self.optimizer.zero_grad(set_to_none=True)
        self.processes.wait()
        self.skipped += 1
        names = ", ".join(name for batch in batches for name in batch["names"])
        message = (
            f"step {step}: {wrong or 'loss not finite in another process'}; the batch is in {folder}; records: {names}"
        )
        if self.skipped > self.config.max_skipped_steps:
            raise RunError(message)
        log.warning("%s; left out, %d of %d allowed", message, self.skipped, self.config.max_skipped_steps)

    def _tell(self, done: int, rate: float, wait: float, left: float, board: TrackerHub) -> None:
        means = {name: total / self.counted for name, total in self.sums.items()} if self.counted else {}
        self.sums, self.counted = {}, 0
        self.curve.append({"step": done, **{k: round(v, 6) for k, v in means.items()}})
        loss = f"loss {means['loss']:.4f}" if means else "every step left out"
        figures = f"{loss}, {rate:.1f} images/s, data wait {100 * wait:.0f}%"
        self.progress.detail(figures)
        if self.processes.main:
            log.info("step %d of %d: %s, %s left", done, self.config.steps, figures, _clock(left))
        rates = {
            "learning_rate": max(g["lr"] for g in self.optimizer.param_groups),
            "images_per_second": rate,
            "data_wait_share": wait,
        }
        board.scalars({**means, **rates}, done)

    def _draw(self, done: int, batch: dict[str, Any], board: TrackerHub) -> None:
        batch = batch | self._inputs(batch)
        for i, image in enumerate(predictions_beside_targets(self.network, self.processor, batch)):
            board.picture(f"predictions_and_targets/{i}", image, done)

    def _report(self, steps: int) -> TrainReport:
        """The report so far. All processes must ask together: it holds the losses of each."""
        self.lost.update(self.processes.total(self.new_lost))
        self.new_lost.clear()
        return TrainReport(
            fingerprint=self.identity.result, run=self.identity, steps=steps, final="final", records=self.data.totals,
            lost=dict(sorted(self.lost.items())), skipped_steps=self.skipped, overflowed_steps=self.overflowed, curve=self.curve,
        )  # fmt: skip

    def _save(self, done: int) -> None:
        resumed = Resumed(
            report=self._report(done), sums=self.sums, counted=self.counted,
            averaged=self.average.updates if self.average else 0, scaler=self.scaler.state(),
        )  # fmt: skip
        weights = state.weights(self.network)
        moments = state.optimizer_state(self.optimizer, self.network)
        average = {n: state.full(v) for n, v in self.average.values.items()} if self.average else None

        def fill(folder: Path) -> None:
            self._write_model(folder / "model", weights)
            state.save_optimizer(moments, folder)
            if average is not None:
                state.save_tensors(average, folder / state.AVERAGE)
            write_json(folder / TRAINER, resumed.model_dump(mode="json"))

        if self.processes.main:
            self.folder.check()
            write_checkpoint(self.out / f"step-{done:08d}", done, self.identity.mark, fill)
            prune(self.out, self.config.keep_checkpoints, self.identity.mark, done)
        self.processes.wait()

    def _write_model(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        self.network.save_pretrained(folder, state_dict=weights)
        self.processor.save_pretrained(folder)

    def _finish(self) -> TrainReport:
        report = self._report(self.config.steps)
        results = {"final": state.weights(self.network)}
        if self.average is not None:
            results["final_ema"] = self.average.weights(self.network)
        if self.processes.main:
            self.folder.check()
            for name, weights in reversed(results.items()):  # final last: with it the run counts as done
                fill = partial(self._write_model, weights=weights)
                write_checkpoint(self.out / name, self.config.steps, self.identity.result, fill)
            write_json(self.out / REPORT, report.model_dump(mode="json"))
            clear(self.out)
        self.processes.wait()
        return report


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
