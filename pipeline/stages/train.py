"""Train a teacher or a student on any mixture of human labels and pseudo-labels.

An optimiser step is a function of (configuration, shards, initial weights, step): the order of
records is computed (pipeline/training/sampling.py), learning rates are stateless, and checkpoints
are atomic. A killed run resumes from its newest intact checkpoint. If the data have changed,
training restarts; if a setting has changed, it is refused (pipeline/training/resume.py).
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path

from pipeline.config import ModelConfig
from pipeline.errors import InputError
from pipeline.execution.options import WorkLeft
from pipeline.io.paths import local_folder
from pipeline.io.shard_patterns import expand_shards
from pipeline.stages.jobs import TrainModel
from pipeline.system.devices import resolved_precision
from pipeline.training.checkpoints import read_state
from pipeline.training.index_shards import index_shards
from pipeline.training.report import TrainReport
from pipeline.training.resume import finished_report
from pipeline.training.run_identity import Identity

log = logging.getLogger("glip_self_train")


def run(job: TrainModel) -> TrainReport:
    """Train for ``settings.steps`` and write a model folder to ``out/final``.

    The names of ``sources`` are those of ``settings.mixture``. ``init`` is the model folder to
    start from (the teacher of a warm-started student, a converted release); without it a network is
    built as ``model`` states.

    Raises:
        InputError: the mixture, shards or model folder are wrong, there is no such device, or
            ``out`` holds a training with other settings or one that another process runs.
        RunError: the loss is not finite; the message names the step, the records and the batch's
            file.
    """
    init, model, progress = job.init, job.model or ModelConfig(), job.progress
    precision = resolved_precision(job.settings.precision, job.device)
    config = job.settings.model_copy(update={"precision": precision})
    out = local_folder(job.out, "a training")
    sources = {name: [s for path in paths for s in expand_shards(path)] for name, paths in job.sources.items()}
    validation = {name: [s for path in paths for s in expand_shards(path)] for name, paths in job.validation.items()}
    if bool(config.validate_every) != bool(validation):
        found = f"validate_every {config.validate_every}, {len(validation)} validation sets"
        raise InputError(
            f"found {found}; want --set validate_every=STEPS and --validation NAME=SHARDS together (in a recipe: "
            "data.validation)"
        )
    if both := {s for shards in validation.values() for s in shards} & {s for all_ in sources.values() for s in all_}:
        raise InputError(f"--validation {min(both)}: is trained on too; want shards that are no --source")
    if not sources or not all(sources.values()):
        raise InputError("no training shards: want at least one source, each with shards")
    if init is not None and Path(init).resolve().is_relative_to(out.resolve()):
        raise InputError(
            f"{init}: the training would write over the model it starts from; want an --out beside it, not {out}"
        )
    index_shards([s for shards in [*sources.values(), *validation.values()] for s in shards], progress)
    identity = Identity.of(config, sources, model=model, init=init)
    report = finished_report(out, identity)
    if report is not None:
        log.info("%s: already trained for %d steps", out, report.steps)
        return report
    if job.check_only:
        raise WorkLeft

    # a finished training is found without torch, whose import takes seconds
    import torch

    from pipeline.training.distributed import check_device
    from pipeline.training.trackers import check_tracker
    from pipeline.training.trainer import Trainer

    check_tracker(job.tracker)
    check_device(job.device, config.precision)
    # a thread pool for a few captions costs more than it saves
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if job.threads:
        torch.set_num_threads(job.threads)
    if (out / "final").is_dir() and not (out / "report.json").is_file() and read_state(out / "final") is None:
        raise InputError(f"{out}/final: found a model folder of another origin; want another --out, or move it away")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as exit_stack:
        trainer = Trainer(
            config, sources, out, identity, model=model, init=init, device=job.device,
            data_workers=job.data_workers, validation=validation,
            tracker=job.tracker, progress=progress, exit_stack=exit_stack,
        )  # fmt: skip
        return trainer.train()
