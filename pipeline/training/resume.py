"""Decides whether to resume, restart or refuse when the output folder already has checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.errors import InputError, RunError
from pipeline.training.checkpoints import (
    activate_run,
    checkpoints_of_others,
    latest_checkpoint,
    read_document,
    read_state,
    recover,
)
from pipeline.training.report import TRAINER, TrainerState, TrainReport, read_report
from pipeline.training.run_identity import Identity

log = logging.getLogger("glip_self_train")


def finished_report(out: Path, identity: Identity) -> TrainReport | None:
    """The report in ``out`` if it is of this training and its model is intact."""
    report = read_report(out)
    if report is None or report.fingerprint != identity.result_fingerprint or read_state(out / "final") is None:
        return None
    return report


def find_checkpoint(out: Path, identity: Identity) -> tuple[Path, int] | None:
    """The checkpoint to resume from, and its step; None: start from the beginning.

    Never removes checkpoints of other trainings. Changed data (new pseudo-labels, a new teacher)
    start a new training; the unfinished one's checkpoints are renamed to aside-* until the new one
    has finished. A changed setting is refused: it may be a mistake that would cost days. Renames
    folders, so the caller must hold the folder's lock
    (:func:`pipeline.execution.folder_lock.folder_lock`).

    Raises:
        RunError: the previous holder of the folder has finished this training.
        InputError: the folder has an unfinished training with other settings and none with these;
            the message names the settings that differ.
    """
    if finished_report(out, identity) is not None:
        raise RunError(f"{out}: this training was finished by other processes just now; start again for its report")
    recover(out)
    fingerprint = identity.fingerprint
    checkpoint = latest_checkpoint(out, fingerprint) or latest_checkpoint(out, fingerprint, aside=True)
    if checkpoint is None:
        _check_restart(out, identity)
    activate_run(out, fingerprint)
    return None if checkpoint is None else (out / f"step-{checkpoint[1]:08d}", checkpoint[1])


def _check_restart(out: Path, identity: Identity) -> None:
    report = read_report(out)
    finished = report.run if report is not None else None
    for folder, state in checkpoints_of_others(out, identity.fingerprint):
        if finished is not None and finished.fingerprint == state.fingerprint:
            continue  # a finished run that was killed before it removed its checkpoints
        trainer_state = read_document(folder / TRAINER, TrainerState, "this version's trainer state")
        before = trainer_state.report.run if trainer_state is not None else None
        changed = ["settings that this version cannot read"] if before is None else identity.changed_settings(before)
        if before is None or changed:
            raise InputError(
                f"{out}: an unfinished training with other settings is here (step {state.step}, {folder.name}); "
                f"now: {'; '.join(changed)}. Want its settings, to resume it; or another --out; or remove "
                f"{folder.name}, and every other step-* and aside-* folder, to start from the beginning"
            )
        log.warning(
            "%s: starting from the beginning: %s changed since the unfinished training here (step %d), "
            "whose checkpoints are kept until this training has finished",
            out, ", ".join(identity.changed_data(before)), state.step,
        )  # fmt: skip
        return
    if finished is not None:
        changed = [*identity.changed_settings(finished), *identity.changed_memory_settings(finished)]
        changed += identity.changed_data(finished)
        log.info("%s: starting from the beginning: %s", out, "; ".join(changed) or "the model here is damaged")
