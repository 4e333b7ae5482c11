"""Where a training begins: at its newest checkpoint, anew, or not at all, because another one waits in its folder."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.errors import InputError, RunError
from pipeline.training.checkpoints import latest_checkpoint, others, read_state, settle, take_over
from pipeline.training.report import TrainReport, read_report, read_resumed
from pipeline.training.run_identity import Identity

log = logging.getLogger("glip_self_train")


def finished(out: Path, identity: Identity) -> TrainReport | None:
    """The report of this very training, if its model is there and whole."""
    report = read_report(out)
    done = report is not None and report.fingerprint == identity.result and read_state(out / "final") is not None
    return report if done else None


def find_checkpoint(out: Path, identity: Identity) -> tuple[Path, int] | None:
    """The checkpoint to go on from, and its step; None: begin anew (the log says why, if something was there).

    Checkpoints of other trainings are never removed here. Changed data (new pseudo-labels, a new teacher) make a new training, and the old
    one's checkpoints step aside until it has finished. A setting that a person has changed may be a slip that would cost days.
    For one process alone (:func:`pipeline.execution.folder_lock.folder_lock`): it renames folders.

    Raises:
        RunError: who had the folder before us has finished this training.
        InputError: an unfinished training with other settings is there, and none with these; names what differs.
    """
    if finished(out, identity) is not None:
        raise RunError(f"{out}: this training was finished by other processes just now; start again for its report")
    settle(out)
    found = latest_checkpoint(out, identity.mark)
    if found is None:
        found = latest_checkpoint(out, identity.mark, aside=True)
    if found is None:
        _explain(out, identity)
    take_over(out, identity.mark)
    return None if found is None else (out / f"step-{found[1]:08d}", found[1])


def _explain(out: Path, identity: Identity) -> None:
    done = read_report(out)
    finished = done.run if done is not None else None
    for folder, state in others(out, identity.mark):
        if finished is not None and finished.mark == state.fingerprint:
            continue  # a run that was killed between its last file and the removal of its checkpoints
        past = read_resumed(folder)
        before = past.report.run if past is not None else None
        differ = ["settings that this version cannot read"] if before is None else identity.other_settings(before)
        if differ:
            raise InputError(
                f"{out}: an unfinished training with other settings is here (step {state.step}, {folder.name}); "
                f"now: {'; '.join(differ)}. Want its settings, to go on with it; or another --out; or remove {folder.name}, "
                "and what else begins with step- or aside-, to train anew"
            )
        assert before is not None
        log.warning(
            "%s: training anew: %s changed since the unfinished training here (step %d), whose checkpoints are kept until this one has finished",
            out, ", ".join(identity.other_data(before)), state.step,
        )  # fmt: skip
        return
    if finished is not None:
        why = [*identity.other_settings(finished), *identity.other_fits(finished), *identity.other_data(finished)]
        log.info("%s: training anew: %s", out, "; ".join(why) or "the model that was here is not whole")
