"""Train a teacher or a student on any mixture of human and pseudo labels.

One optimiser step is a function of (configuration, shards, initial weights, step): the order of
records is arithmetic (pipeline/training/sampling.py), rates are stateless, and checkpoints are atomic. A
killed run resumes from its newest intact checkpoint. If the data have changed, it starts from the
beginning; if a setting has, it is refused (pipeline/training/resume.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.config import ModelConfig, TrainConfig
from pipeline.errors import InputError
from pipeline.execution.progress import Progress, Silent
from pipeline.io.paths import local_folder
from pipeline.training.checkpoints import read_state
from pipeline.training.distributed import check_device
from pipeline.training.index_shards import index_shards
from pipeline.training.report import TrainReport
from pipeline.training.resume import finished_report
from pipeline.training.run_identity import Identity
from pipeline.training.trackers import check_tracker
from pipeline.training.trainer import Trainer

log = logging.getLogger("glip_self_train")

__all__ = ["TrainReport", "run"]


def run(
    config: TrainConfig,
    sources: Mapping[str, Sequence[str]],
    out: str | Path,
    *,
    model: ModelConfig | None = None,
    init: str | None = None,
    device: str = "cpu",
    data_workers: int = 0,
    tracker: str | None = None,
    progress: Progress | None = None,
) -> TrainReport:
    """Train for ``config.steps`` and leave a model folder in ``out/final``.

    Args:
        sources: name -> training shards; the names are those of ``config.mixture``.
        model: what to build when starting from nothing; needed if ``init`` is absent.
        init: model folder to start from (the teacher of a warm-started student, a converted release).
        data_workers: DataLoader workers for each training process; 0: load in the training process.
        tracker: "wandb" or "trackio", beside TensorBoard.

    Raises:
        InputError: wrong mixture, shards or model folder; no such device; or ``out`` holds an
            unfinished training with other settings, or one that is running in other processes.
        RunError: the loss is not finite; the message names the step, the records and the batch's file.
    """
    out = local_folder(out, "a training")
    check_tracker(tracker)
    check_device(device, config.precision)
    if not sources or not all(sources.values()):
        raise InputError("no training shards: want at least one source, each with shards")
    if init is not None and Path(init).resolve().is_relative_to(out.resolve()):
        raise InputError(
            f"{init}: the training would write over the model it starts from; want an --out beside it, not {out}"
        )
    index_shards([s for shards in sources.values() for s in shards], progress or Silent())
    identity = Identity.of(config, sources, model=model or ModelConfig(), init=init)
    report = finished_report(out, identity)
    if report is not None:
        log.info("%s: already trained for %d steps", out, report.steps)
        return report
    if (out / "final").is_dir() and not (out / "report.json").is_file() and read_state(out / "final") is None:
        raise InputError(f"{out}/final: no training of ours made it; want another --out, or move it away")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as exit_stack:
        trainer = Trainer(
            config, sources, out, identity, model=model or ModelConfig(), init=init, device=device,
            data_workers=data_workers, tracker=tracker, progress=progress or Silent(), exit_stack=exit_stack,
        )  # fmt: skip
        return trainer.train()
