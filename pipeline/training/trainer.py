"""The training loop: steps, metrics, checkpoints, and the final model folders."""

from __future__ import annotations

import io
import logging
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, recursively_apply, send_to_device, set_seed

from model import GlipConfig
from model.losses import loss_divisors
from pipeline.annotators.memory import check_cpu_memory, dry_step
from pipeline.config import ModelConfig, TrainConfig
from pipeline.errors import InputError, RunError
from pipeline.execution.folder_lock import FolderLock, folder_lock
from pipeline.execution.progress import Progress
from pipeline.io.atomic import write_atomic, write_json
from pipeline.training import state_dict as state
from pipeline.training.checkpoints import prune, remove_all, write_checkpoint
from pipeline.training.dataset import TrainingData
from pipeline.training.distributed import Processes, compile_units
from pipeline.training.image_batch import Normaliser
from pipeline.training.model_factory import build_model, model_config
from pipeline.training.optim import make_optimizer, set_rates
from pipeline.training.report import REPORT, TRAINER, TrainerState, TrainReport
from pipeline.training.resume import find_checkpoint
from pipeline.training.run_identity import Identity
from pipeline.training.sample_images import predictions_beside_targets
from pipeline.training.sampling import generator
from pipeline.training.trackers import TrackerHub

log = logging.getLogger("glip_self_train")
NOT_INPUTS = {"lost", "names", "captions", "spans"}
"""Keys of a batch that are not inputs of the network."""
BEST = "best"
"""Model folder of the step with the best validation."""
MIN_LOSS_SCALE = 1.0
"""Gradients that are not finite at this scale are not so because of fp16's loss scaling."""


class Trainer:
    """A training run from its newest checkpoint on; arguments as :func:`pipeline.stages.train.run`.

    ``exit_stack`` receives the lock of the output folder.

    Raises:
        InputError: ``batch_size`` is not divisible; settings that FSDP2 does not support; errors of
            :func:`find_checkpoint`, :func:`build_model` and :class:`TrainingData`.
    """

    lock: FolderLock
    """Lock of the output folder, in the main process only; checked before anything is saved."""

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
        validation: Mapping[str, Sequence[str]],
        progress: Progress,
        exit_stack: ExitStack,
    ) -> None:
        self.processes = Processes(device=device, precision=config.precision, tracker=tracker, folder=str(out))
        self.accelerator = self.processes.accelerator
        if self.processes.main:
            log.info("training in %s", self.processes.description)
        pieces = self.processes.count * config.accumulate
        if config.batch_size % pieces:
            raise InputError(
                f"batch_size {config.batch_size} cannot be shared by {self.processes.count} processes times accumulate "
                f"{config.accumulate}: want a multiple of {pieces}"
            )
        if self.processes.sharded and config.max_skipped_steps:
            raise InputError(
                f"max_skipped_steps {config.max_skipped_steps} under FSDP2: its processes deadlock in the step after a "
                "skipped one; want 0, or DDP, which resumes from the same checkpoints"
            )
        self.config, self.out, self.identity = config, out, identity
        self.progress, self.data_workers, self.tracker = progress, data_workers, tracker
        checkpoint = self._find_checkpoint(exit_stack)
        set_seed(config.seed)
        on_gpu = self.accelerator.device.type == "cuda"
        if config.check_memory and not on_gpu:
            self._check_cpu_memory(model_config(model, init))
        self.network, self.processor = build_model(model, init)
        if config.validate_every and config.best_metric == "loss_centerness" and self.network.config.head != "dynamic":
            raise InputError("best_metric: found loss_centerness, which a two-stage head has not; want loss")
        self.network.freeze(text_layers=config.freeze_text_layers, backbone_stages=config.freeze_backbone_stages)
        if config.gradient_checkpointing:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})
        compile_units(self.network, config.compile)
        self.normaliser = Normaliser(self.processor.image_processor)
        self.data = TrainingData(config, sources, self.processor)
        for warning in self.data.flip_warnings() if self.processes.main else ():
            log.warning(warning)
        if config.check_memory and on_gpu and not self.processes.sharded:
            self._check_gpu_memory()
        self.model, self.optimizer = self.processes.wrap(self.network, make_optimizer(self.network, config))
        self.network = self.accelerator.unwrap_model(self.model)
        self.average = state.Average(self.network, config.ema) if config.ema is not None else None
        self.scaler = self.accelerator.scaler or torch.amp.GradScaler(enabled=False)
        self.lost, self.new_lost = Counter[str](), Counter[str]()
        self.skipped = self.overflowed = self.first = self.counted = 0
        self.curve: list[dict[str, float]] = []
        self.validated: list[dict[str, float]] = []
        self.validation = self._validation_data(validation) if validation else None
        self.sums: dict[str, float] = {}
        if checkpoint is not None:
            self._resume(*checkpoint)

    @property
    def _largest_size(self) -> tuple[int, int]:
        """Height and width to which the largest images are padded."""
        multiple = 32
        longest = self.config.max_image_size
        shortest = min(longest, max(self.config.image_sizes))
        return -(-shortest // multiple) * multiple, -(-longest // multiple) * multiple

    @property
    def _micro_batch(self) -> int:
        """Images that a process computes at a time."""
        size: int = self.config.batch_size // (self.processes.count * self.config.accumulate)
        return size

    def _check_cpu_memory(self, network: GlipConfig) -> None:
        config = self.config
        check_cpu_memory(
            network, self._largest_size, self._micro_batch, advice=self._memory_advice,
            processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")), training=True, precision=config.precision,
            checkpointing=config.gradient_checkpointing, averaged=config.ema is not None,
        )  # fmt: skip

    def _check_gpu_memory(self) -> None:
        """Try a step of the largest images; raises InputError with the batch that fits."""
        self.network.to(self.accelerator.device)
        images = self._micro_batch
        while images and self.processes.any(
            not dry_step(self.network, self._largest_size, images, self.config.precision)
        ):
            images //= 2
        if images < self._micro_batch:
            height, width = self._largest_size
            raise InputError(
                f"{self._micro_batch} images of {height}x{width} in a batch do not fit into the GPU's memory; want "
                f"{self._memory_advice(images)}"
            )

    def _memory_advice(self, fits: int) -> str:
        """Settings with which a micro-batch has at most ``fits`` images."""
        batch, processes = self.config.batch_size, self.processes.count
        pieces = [n for n in range(1, batch + 1) if batch % (n * processes) == 0 and batch // (n * processes) <= fits]
        if pieces:
            return (
                f"--set accumulate={pieces[0]} (the same steps, {batch // (pieces[0] * processes)} images at a time), "
                f"or --set batch_size={fits * processes * self.config.accumulate}"
            )
        checkpointing = "" if self.config.gradient_checkpointing else "--set gradient_checkpointing=true, "
        return f"{checkpointing}smaller image_sizes and max_image_size, or more memory (check_memory=false: no check)"

    def _find_checkpoint(self, exit_stack: ExitStack) -> tuple[Path, int] | None:
        """Lock the folder and find the checkpoint in the main process, for every process."""
        checkpoint: tuple[Path, int] | None = None
        error: InputError | RunError | None = None
        if self.processes.main:
            try:
                self.lock = exit_stack.enter_context(folder_lock(self.out, log.warning, name="training"))
                checkpoint = find_checkpoint(self.out, self.identity)
            except (InputError, RunError) as raised:
                error = raised
        checkpoint, error = gather_object([(checkpoint, error)])[0]
        if error is not None:
            raise error
        return checkpoint

    def _resume(self, folder: Path, step: int) -> None:
        saved = TrainerState.model_validate_json((folder / TRAINER).read_bytes())
        state.load_weights(self.network, folder / state.WEIGHTS)
        state.load_optimizer(self.optimizer, self.network, folder)
        if self.average is not None:
            self.average.load(folder / state.AVERAGE, saved.averaged)
        if saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        self.lost, self.curve, self.skipped = Counter(saved.report.lost), saved.report.curve, saved.report.skipped_steps
        self.overflowed, self.validated = saved.report.overflowed_steps, saved.report.validation
        self.first, self.sums, self.counted = step, saved.sums, saved.counted
        if self.processes.main:
            log.info("%s: resuming from step %d", self.out, self.first)
            for change in self.identity.changed_memory_settings(saved.report.run) if saved.report.run else []:
                log.warning("%s: same samples in the same order, but other padding (by micro-batch), rounding or "
                            "dropout, so the weights are not those of an unchanged run", change)  # fmt: skip

    def train(self) -> TrainReport:
        """Run all remaining steps and write the model folders and the report.

        Raises:
            RunError: more steps than ``max_skipped_steps`` are not finite; or another training took
                the folder.
        """
        config = self.config
        if self.processes.main and self.first == 0:
            shutil.rmtree(self.out / BEST, ignore_errors=True)  # of another training
        self.progress.begin("train", config.steps, unit="steps", before=self.first)
        self.model.train()
        trackers = TrackerHub(
            self.accelerator, self.out, first=self.first, settings=config.model_dump(mode="json"), tracker=self.tracker
        )
        loader = self.data.loader(
            first=self.first, rank=self.processes.rank, processes=self.processes.count,
            workers=self.data_workers, pin=self.accelerator.device.type == "cuda",
        )  # fmt: skip
        waited, steps, began = 0.0, 0, time.monotonic()  # since the last log line
        for done in range(self.first + 1, config.steps + 1):
            requested = time.monotonic()
            batches = [next(loader) for _ in range(config.accumulate)]
            waited += time.monotonic() - requested
            steps += 1
            losses = self._step(done - 1, batches)
            if losses is not None:
                self.counted += 1
                for name, value in losses.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
            self.progress.advance(1, "steps")
            if done % config.log_every == 0 or done == config.steps:
                self._log(done, steps, waited, time.monotonic() - began, trackers)
                waited, steps, began = 0.0, 0, time.monotonic()
            if config.validate_every and done % config.validate_every == 0:
                self._validate(done, trackers)
            if done % config.save_every == 0 and done < config.steps:
                self._save(done)
            if config.draw_every and done % config.draw_every == 0:
                self._draw(done, batches[0], trackers)
        report = self._finish()
        trackers.close()
        return report

    def _step(self, step: int, batches: Sequence[dict[str, Any]]) -> dict[str, float] | None:
        """One optimiser step; its losses, None if it was skipped because one is not finite."""
        for batch in batches:
            self.new_lost.update(batch["lost"])
        set_rates(self.optimizer, step, self.config)
        inputs, pieces = [self._inputs(batch) for batch in batches], len(batches)
        divisors = self._loss_divisors(inputs) if pieces > 1 else None
        values: dict[str, float] = {}
        for piece, piece_inputs in enumerate(inputs):
            # dropout is a function of the step too, independent of restarts and of other random draws
            parts = ("step", step, self.processes.rank) + ((piece,) if piece else ())
            torch.manual_seed(int(generator(self.config.seed, *parts).integers(2**63)))
            reason = ""
            with self.processes.gradient_sync(self.model, piece == pieces - 1):
                try:
                    output = self.processes.forward(self.model, **piece_inputs, loss_divisors=divisors)
                except FloatingPointError as error:
                    reason = str(error)
                if self.processes.any(bool(reason)):
                    self._skip(step, batches, inputs, reason)
                    return None
                self.accelerator.backward(output.loss if pieces == 1 else output.loss / pieces)
            for name, value in {"loss": output.loss, **output.loss_dict}.items():
                values[name] = values.get(name, 0.0) + float(value.detach()) / pieces
        norm = self.processes.clip(self.model.parameters(), self.config.clip_grad_norm)
        if not math.isfinite(norm):
            self._skip_overflow(step, batches, inputs, norm)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        means = self.processes.means(values)
        return {"loss": means.pop("loss"), "grad_norm": norm, **means}

    def _loss_divisors(self, inputs: Sequence[dict[str, Any]]) -> torch.Tensor | None:
        """Divisors of the step's losses for each of its micro-batches, whose gradients are averaged.

        So that the step is that of the whole batch. None: each micro-batch has its own, as its
        predictions decide them.
        """
        counts = [
            self.network.loss_counts(
                i["pixel_values"].shape[-2:], i["labels"], i["input_ids"].shape[1], i["image_sizes"]
            )
            for i in inputs
        ]
        known = [count for count in counts if count is not None]
        return loss_divisors(torch.stack(known).sum(0)) / len(inputs) if known else None

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The network's inputs in a batch, on its device."""
        inputs = {k: v for k, v in batch.items() if k not in NOT_INPUTS}
        inputs = dict(send_to_device(inputs, self.accelerator.device, non_blocking=True))
        inputs["pixel_values"] = self.normaliser(inputs.pop("pixels"), batch["image_sizes"])
        return inputs

    def _skip_overflow(
        self, step: int, batches: Sequence[dict[str, Any]], inputs: Sequence[dict[str, Any]], norm: float
    ) -> None:
        """Skip a step whose gradients are not finite; halve the loss scale while that may help.

        torch's scaler has no lower limit: with gradients that are never finite it would skip every
        step to the end of the training.
        """
        if self.scaler.get_scale() <= MIN_LOSS_SCALE:
            self.scaler.update(self.scaler.get_scale())  # resets the step's state and keeps the scale
            self._skip(step, batches, inputs, f"gradient norm is {norm}")
            return
        self.optimizer.step()  # skipped by the scaler
        self.optimizer.zero_grad(set_to_none=True)
        self.overflowed += 1
        if self.processes.main:
            log.info("step %d: gradients overflowed fp16; skipped, and the loss scale is halved", step)

    def _skip(
        self, step: int, batches: Sequence[dict[str, Any]], inputs: Sequence[dict[str, Any]], reason: str
    ) -> None:
        """Dump the batch; raises RunError if more steps than ``max_skipped_steps`` are skipped."""
        names = [name for batch in batches for name in batch["names"]]
        folder = self._dump(
            step, batches, inputs, {"what": reason or "finite here; another process's was not", "records": names}
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.wait_for_everyone()
        self.skipped += 1
        message = (
            f"step {step}: {reason or 'loss not finite in another process'}; the batch is in {folder}; "
            f"records: {', '.join(names)}"
        )
        if self.skipped > self.config.max_skipped_steps:
            raise RunError(message)
        log.warning("%s; skipped, %d of %d allowed", message, self.skipped, self.config.max_skipped_steps)

    def _dump(
        self, step: int, batches: Sequence[dict[str, Any]], inputs: Sequence[dict[str, Any]], about: dict[str, Any]
    ) -> Path:
        """Write ``nonfinite-STEP/rank-R.json`` and ``rank-R.pt`` for debugging; returns the folder.

        The ``.pt`` file is the list of the micro-batches' inputs to the network, so that
        ``network(**torch.load(file)[0])`` repeats the first forward pass.
        """
        folder, name = self.out / f"nonfinite-{step:08d}", f"rank-{self.processes.rank}"
        folder.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        torch.save(recursively_apply(lambda tensor: tensor.detach().cpu(), list(inputs)), file)
        write_atomic(folder / f"{name}.pt", file.getvalue())
        captions = [caption for batch in batches for caption in batch["captions"]]
        write_json(folder / f"{name}.json", {"step": step, "captions": captions, **about})
        return folder

    def _log(self, done: int, steps: int, waited: float, seconds: float, trackers: TrackerHub) -> None:
        """Log the means of ``steps`` steps that took ``seconds``, ``waited`` of them for data."""
        means = {name: total / self.counted for name, total in self.sums.items()} if self.counted else {}
        self.sums, self.counted = {}, 0
        self.curve.append({"step": done, **{k: round(v, 6) for k, v in means.items()}})
        loss = f"loss {means['loss']:.4f}" if means else "every step skipped"
        rate, wait = steps * self.config.batch_size / seconds, waited / seconds
        text = f"{loss}, {rate:.1f} images/s, data wait {100 * wait:.0f}%"
        self.progress.detail(text)
        if self.processes.main:
            left = timedelta(seconds=round((self.config.steps - done) * seconds / steps))
            log.info("step %d of %d: %s, %s left", done, self.config.steps, text, left)
        rates = {
            "learning_rate": max(g["lr"] for g in self.optimizer.param_groups),
            "images_per_second": rate,
            "data_wait_share": wait,
        }
        trackers.scalars({**means, **rates}, done)

    def _validation_data(self, shards: Mapping[str, Sequence[str]]) -> TrainingData:
        """The first records of the sets in a fixed order, at the largest size, as batches of the training's size."""
        batch = self._micro_batch * self.processes.count
        changes = {
            "steps": -(-self.config.validate_images // batch), "batch_size": batch, "accumulate": 1, "flip": 0.0,
            "image_sizes": (max(self.config.image_sizes),), "mixture": {}, "mixture_unit": "copies", "first_steps": 0,
            "last_steps": 0, "seed": 0,
        }  # fmt: skip
        return TrainingData(self.config.model_copy(update=changes), shards, self.processor)

    def _validate(self, done: int, trackers: TrackerHub) -> None:
        """Measure the losses on the validation set; keep the model in ``best/`` if it is the best so far.

        Draws no random number of the training's, so that its steps are the same without validations.
        A loss that is not finite leaves the validation out, with a warning.
        """
        assert self.validation is not None
        losses, reason, failed = list[dict[str, float]](), "", False
        self.model.eval()
        with torch.no_grad():
            for batch in self.validation.loader(first=0, rank=self.processes.rank, processes=self.processes.count):
                try:
                    output = self.processes.forward(self.network, **self._inputs(batch))
                    losses.append({"loss": float(output.loss), **{n: float(v) for n, v in output.loss_dict.items()}})
                except FloatingPointError as error:
                    reason = str(error)
                failed = self.processes.any(bool(reason))
                if failed:
                    log.warning("step %d: not validated: %s", done, reason or "not finite in another process")
                    break
        self.model.train()
        if failed:
            return
        means = self.processes.means({n: sum(row[n] for row in losses) / len(losses) for n in losses[0]})
        self.validated.append({"step": done, **{name: round(value, 6) for name, value in means.items()}})
        trackers.scalars(means, done, "validation")
        if self.processes.main:
            log.info("step %d: validation loss %.4f", done, means["loss"])
        if self._best() is self.validated[-1]:
            weights = state.weights(self.network)
            if self.processes.main:
                self.lock.check()
                fill = partial(self._write_model, weights=weights)
                write_checkpoint(self.out / BEST, done, self.identity.result_fingerprint, fill)
            self.accelerator.wait_for_everyone()

    def _best(self) -> dict[str, float] | None:
        """The first validation with the lowest value of ``best_metric``."""
        return min(self.validated, key=lambda row: row[self.config.best_metric], default=None)

    def _draw(self, done: int, batch: dict[str, Any], trackers: TrackerHub) -> None:
        batch = batch | self._inputs(batch)
        try:
            images = list(predictions_beside_targets(self.network, self.processor, batch))
        except FloatingPointError as error:  # the step itself has counted it, if its loss was not finite
            log.warning("step %d: no image of predictions: %s", done, error)
            return
        for i, image in enumerate(images):
            trackers.image(f"predictions_and_targets/{i}", image, done)

    def _report(self, steps: int) -> TrainReport:
        """The report so far. A collective operation: it sums the counts of all processes."""
        self.lost.update(self.processes.total(self.new_lost))
        self.new_lost.clear()
        return TrainReport(
            fingerprint=self.identity.result_fingerprint, run=self.identity, steps=steps, final="final",
            records=self.data.totals, lost=dict(sorted(self.lost.items())), skipped_steps=self.skipped,
            overflowed_steps=self.overflowed, curve=self.curve,
            validation=self.validated, best=self._best(),
        )  # fmt: skip

    def _save(self, done: int) -> None:
        trainer_state = TrainerState(
            report=self._report(done), sums=self.sums, counted=self.counted,
            averaged=self.average.updates if self.average else 0, scaler=self.scaler.state_dict(),
        )  # fmt: skip
        weights = state.weights(self.network)
        moments = state.optimizer_state(self.optimizer, self.network)
        average = {n: state.full(v) for n, v in self.average.values.items()} if self.average else None

        def fill(folder: Path) -> None:
            self._write_model(folder / "model", weights)
            state.save_optimizer(moments, folder)
            if average is not None:
                state.save_tensors(average, folder / state.AVERAGE)
            write_json(folder / TRAINER, trainer_state.model_dump(mode="json"))

        if self.processes.main:
            self.lock.check()
            write_checkpoint(self.out / f"step-{done:08d}", done, self.identity.fingerprint, fill)
            prune(self.out, self.config.keep_checkpoints, self.identity.fingerprint, done)
        self.accelerator.wait_for_everyone()

    def _write_model(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        self.network.save_pretrained(folder, state_dict=weights)
        self.processor.save_pretrained(folder)

    def _finish(self) -> TrainReport:
        report = self._report(self.config.steps)
        results = {"final": state.weights(self.network)}
        if self.average is not None:
            results["final_ema"] = state.weights(self.network, self.average.values)
        if self.processes.main:
            self.lock.check()
            for name, weights in reversed(results.items()):  # final last: it marks the run as finished
                fill = partial(self._write_model, weights=weights)
                write_checkpoint(self.out / name, self.config.steps, self.identity.result_fingerprint, fill)
            write_json(self.out / REPORT, report.model_dump(mode="json"))
            remove_all(self.out)
        self.accelerator.wait_for_everyone()
        return report
