"""Checkpoints that are whole or not there: written aside, fsynced, renamed, verified when they are read."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.io.commit import write_json
from pipeline.io.hashing import digest_file

log = logging.getLogger("glip_self_train")
STATE = "training_state.json"


class CheckpointState(BaseModel):
    """What a checkpoint belongs to, and the digests of its files."""

    model_config = ConfigDict(extra="forbid")

    step: int
    fingerprint: str
    files: dict[str, str]


def write_checkpoint(folder: Path, step: int, fingerprint: str, fill: Callable[[Path], None]) -> None:
    """Make ``folder``: ``fill`` writes into a temporary folder, which gets its digests, is fsynced and renamed.

    A folder that was there is replaced only once the new one is whole.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    fill(temporary)
    files = sorted(p for p in temporary.rglob("*") if p.is_file())
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    digests = {str(p.relative_to(temporary)): digest_file(p) for p in files}
    state = CheckpointState(step=step, fingerprint=fingerprint, files=digests)
    write_json(temporary / STATE, state.model_dump(mode="json"))
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(temporary, folder)


def read_state(folder: Path) -> CheckpointState | None:
    """The folder's state if every file it names is there with its digest; else None (told in the log)."""
    try:
        state = CheckpointState.model_validate_json((folder / STATE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s: not a checkpoint state (%s); left aside", folder / STATE, error.errors()[0]["msg"])
        return None
    for name, digest in state.files.items():
        path = folder / name
        if not path.is_file() or digest_file(path) != digest:
            log.warning("%s: missing or damaged, so this checkpoint is left aside", path)
            return None
    return state


def latest_checkpoint(out: Path, fingerprint: str) -> tuple[Path, int] | None:
    """The newest whole checkpoint of this very run (same fingerprint), and its step."""
    for folder in sorted(out.glob("step-*[0-9]"), reverse=True):
        state = read_state(folder)
        if state is not None and state.fingerprint == fingerprint:
            return folder, state.step
    return None


def prune(out: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what a killed run left half written."""
    for folder in sorted(out.glob("step-*[0-9]"), reverse=True)[keep:]:
        shutil.rmtree(folder)
    for folder in out.glob("*.tmp"):
        shutil.rmtree(folder)
