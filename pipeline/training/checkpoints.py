"""Atomic checkpoint folders: written to a temporary name, fsynced, renamed, verified by digest.

``X`` is written as ``X.tmp``; its state file, written last, marks it complete. When ``X`` is
replaced, the old folder is renamed to ``X.old`` before the new one is renamed to ``X``. So one of
the three is complete at any moment, and :func:`recover` restores it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.io.atomic import fsync_path, write_json

log = logging.getLogger("glip_self_train")
STATE, ASIDE = "training_state.json", "aside-"
LEFTOVER_NAME = re.compile(r"(step-\d+|final\w*|best)\.(tmp|old)$")
"""Names that :func:`recover` may rename or remove."""

HASH_THREADS = 4
"""Files hashed at a time; hashing releases the GIL."""

Document = TypeVar("Document", bound=BaseModel)


class CheckpointState(BaseModel):
    """The step and training of a checkpoint, and the sha256 of each of its files."""

    model_config = ConfigDict(extra="forbid")

    step: int
    fingerprint: str
    files: dict[str, str]


def write_checkpoint(folder: Path, step: int, fingerprint: str, fill: Callable[[Path], None]) -> None:
    """Write ``folder`` atomically; ``fill`` writes the files into the temporary folder given to it.

    An existing folder is replaced only once the new one is complete; it is restored if the process
    dies in between.
    """
    temporary, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    recover(folder.parent)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with _flushing(temporary):  # starts writing back to disk while the files are still growing
        fill(temporary)
    names = sorted(p.relative_to(temporary).as_posix() for p in temporary.rglob("*") if p.is_file())
    with ThreadPoolExecutor(2 * HASH_THREADS) as pool:
        flushed = pool.map(fsync_path, [temporary / name for name in names])
        digests = dict(zip(names, pool.map(_digest, [temporary / name for name in names]), strict=True))
        list(flushed)
    for subfolder in [p for p in temporary.rglob("*") if p.is_dir()]:
        fsync_path(subfolder)
    state = CheckpointState(step=step, fingerprint=fingerprint, files=digests)
    write_json(temporary / STATE, state.model_dump(mode="json"))
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    fsync_path(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(out: Path) -> None:
    """Finish or roll back checkpoint writes that a killed process left incomplete.

    Only the process that holds the folder's lock may call it: a checkpoint that another process is
    still writing looks the same as an abandoned one.
    """
    for suffix in (".tmp", ".old"):
        for leftover in [p for p in out.glob(f"*{suffix}") if LEFTOVER_NAME.match(p.name)]:
            folder = leftover.with_suffix("")
            if not folder.exists() and (suffix == ".old" or read_state(leftover) is not None):
                os.rename(leftover, folder)
            else:
                shutil.rmtree(leftover)


def read_state(folder: Path) -> CheckpointState | None:
    """The folder's state if all its files are intact; else None, with a warning in the log."""
    state = _read_unverified(folder)
    return state if state is not None and _is_intact(folder, state) else None


def latest_checkpoint(out: Path, fingerprint: str, *, aside: bool = False) -> tuple[Path, int] | None:
    """The newest intact checkpoint with this fingerprint, and its step; ``aside``: of aside-*."""
    for folder in _aside(out) if aside else _steps(out):
        state = _read_unverified(folder)
        if state is not None and state.fingerprint == fingerprint and _is_intact(folder, state):
            return folder, state.step
    return None


def prune(out: Path, keep: int, fingerprint: str, step: int) -> None:
    """Remove the checkpoints of this fingerprint but the newest ``keep``, and incomplete writes.

    Checkpoints beyond ``step``, the one just written, are damaged, or the run would have resumed
    from them; they do not count towards ``keep``.
    """
    recover(out)
    states = {folder: _read_unverified(folder) for folder in _steps(out)}
    own = [f for f, s in states.items() if s is not None and s.fingerprint == fingerprint and s.step <= step]
    for folder in own[keep:]:
        shutil.rmtree(folder)


def remove_all(out: Path) -> None:
    """Remove the checkpoints of all runs: the training in this folder has finished."""
    recover(out)
    for folder in [*_steps(out), *_aside(out)]:
        shutil.rmtree(folder)


def checkpoints_of_others(out: Path, fingerprint: str) -> list[tuple[Path, CheckpointState]]:
    """Checkpoints in this folder that belong to other runs, newest first."""
    states = [(folder, _read_unverified(folder)) for folder in [*_steps(out), *_aside(out)]]
    return [(folder, state) for folder, state in states if state is not None and state.fingerprint != fingerprint]


def activate_run(out: Path, fingerprint: str) -> None:
    """Reserve ``step-N`` for one run: rename its checkpoints back, and others' to aside-*."""
    for folder in _steps(out):
        state = _read_unverified(folder)
        if state is not None and state.fingerprint != fingerprint:
            _move(folder, out / f"{ASIDE}{state.fingerprint[:12]}-{folder.name}")
    for folder in _aside(out):
        state = _read_unverified(folder)
        if state is not None and state.fingerprint == fingerprint:
            _move(folder, out / folder.name[folder.name.index("step-") :])


def _move(folder: Path, to: Path) -> None:
    if to.exists():
        shutil.rmtree(to)
    os.rename(folder, to)


def _steps(out: Path) -> list[Path]:
    return sorted(out.glob("step-*[0-9]"), reverse=True)


def _aside(out: Path) -> list[Path]:
    return sorted(out.glob(f"{ASIDE}*-step-*[0-9]"), reverse=True)


def _read_unverified(folder: Path) -> CheckpointState | None:
    return read_document(folder / STATE, CheckpointState, "a checkpoint state")


def read_document(file: Path, kind: type[Document], description: str) -> Document | None:
    """Read a JSON file; None if it is missing or, with a warning in the log, invalid."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s: not %s (%s); ignored", file, description, error.errors()[0]["msg"])
        return None


def _is_intact(folder: Path, state: CheckpointState) -> bool:
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        digests = list(pool.map(_digest, [folder / name for name in state.files]))
    for name, digest in zip(state.files, digests, strict=True):
        if state.files[name] != digest:
            log.warning("%s: missing or damaged; this checkpoint is ignored", folder / name)
            return False
    return True


def _digest(path: Path) -> str | None:
    """sha256 of the file's present contents: a digest cached by size and time would miss damage."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        return None


@contextmanager
def _flushing(folder: Path) -> Iterator[None]:
    """Fsync a folder's files repeatedly in a background thread."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.05):
            with suppress(OSError):  # a file or folder that is renamed meanwhile
                for path in [p for p in folder.rglob("*") if p.is_file()]:
                    fsync_path(path)

    thread = threading.Thread(target=work, name="flusher", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
