"""Checkpoints that are whole or not there: written aside, fsynced, renamed, verified when they are read.

While ``X`` is made it is ``X.tmp``; its state file, written last, declares it whole. To replace a folder the old one steps aside as
``X.old`` before the new one takes its name. So at any moment one of the three is whole, and :func:`settle` puts it in its place.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.io.atomic import write_json

log = logging.getLogger("glip_self_train")
STATE, ASIDE = "training_state.json", "aside-"
OURS = re.compile(r"(step-\d+|final\w*)\.(tmp|old)$")
"""Names that :func:`settle` may touch."""

HASHERS = 4
"""Files hashed at a time; hashing leaves Python's lock alone."""


class CheckpointState(BaseModel):
    """What a checkpoint belongs to, and the digests of its files."""

    model_config = ConfigDict(extra="forbid")

    step: int
    fingerprint: str
    files: dict[str, str]


def write_checkpoint(folder: Path, step: int, fingerprint: str, fill: Callable[[Path], None]) -> None:
    """Make ``folder``: ``fill`` writes into a temporary folder, which gets its digests, is fsynced and renamed.

    A folder that was there is replaced only once the new one is whole, and comes back if this process dies in between.
    """
    temporary, old = _beside(folder)
    settle(folder.parent)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with _Flusher(temporary):  # so that the disk works while the files are still being written
        fill(temporary)
    names = sorted(p.relative_to(temporary).as_posix() for p in temporary.rglob("*") if p.is_file())
    with ThreadPoolExecutor(2 * HASHERS) as pool:
        flushed = pool.map(_fsync, [temporary / name for name in names])
        digests = dict(zip(names, pool.map(_digest, [temporary / name for name in names]), strict=True))
        list(flushed)
    for inner in [p for p in temporary.rglob("*") if p.is_dir()]:
        _fsync(inner)
    state = CheckpointState(step=step, fingerprint=fingerprint, files=digests)
    write_json(temporary / STATE, state.model_dump(mode="json"))
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    _fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def settle(out: Path) -> None:
    """Finish or undo what a killed process left between writing a checkpoint and removing the one it replaces.

    For the process that writes only: another's half-written folder looks the same.
    """
    for temporary in [p for p in out.glob("*.tmp") if OURS.match(p.name)]:
        folder = temporary.with_suffix("")
        if not folder.exists() and read_state(temporary) is not None:
            os.rename(temporary, folder)
        else:
            shutil.rmtree(temporary)
    for old in [p for p in out.glob("*.old") if OURS.match(p.name)]:
        folder = old.with_suffix("")
        if not folder.exists():
            os.rename(old, folder)
        else:
            shutil.rmtree(old)


def read_state(folder: Path) -> CheckpointState | None:
    """The folder's state if every file it names is there with its digest; else None (told in the log)."""
    state = _claimed(folder)
    return state if state is not None and _whole(folder, state) else None


def latest_checkpoint(out: Path, fingerprint: str, *, aside: bool = False) -> tuple[Path, int] | None:
    """The newest whole checkpoint of this very run (same fingerprint), and its step; ``aside``: of those that stepped aside."""
    for folder in _aside(out) if aside else _steps(out):
        state = _claimed(folder)
        if state is not None and state.fingerprint == fingerprint and _whole(folder, state):
            return folder, state.step
    return None


def prune(out: Path, keep: int, fingerprint: str, step: int) -> None:
    """Remove all checkpoints of this very run but the newest ``keep`` up to ``step``, and what a killed run left half written.

    Those beyond the step just written are damaged, or the run would have gone on from there: they do not count.
    """
    settle(out)
    states = {folder: _claimed(folder) for folder in _steps(out)}
    mine = [f for f, s in states.items() if s is not None and s.fingerprint == fingerprint and s.step <= step]
    for folder in mine[keep:]:
        shutil.rmtree(folder)


def clear(out: Path) -> None:
    """Remove every checkpoint, of other runs too: this folder's training has finished."""
    settle(out)
    for folder in [*_steps(out), *_aside(out)]:
        shutil.rmtree(folder)


def others(out: Path, fingerprint: str) -> list[tuple[Path, CheckpointState]]:
    """Checkpoints here that belong to other runs, the newest first."""
    found = [(folder, _claimed(folder)) for folder in [*_steps(out), *_aside(out)]]
    return [(folder, state) for folder, state in found if state is not None and state.fingerprint != fingerprint]


def take_over(out: Path, fingerprint: str) -> None:
    """Give the names ``step-N`` to this very run: other runs' checkpoints step aside, its own ones come back."""
    for folder in _steps(out):
        state = _claimed(folder)
        if state is not None and state.fingerprint != fingerprint:
            _move(folder, out / f"{ASIDE}{state.fingerprint[:12]}-{folder.name}")
    for folder in _aside(out):
        state = _claimed(folder)
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


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")


def _claimed(folder: Path) -> CheckpointState | None:
    try:
        return CheckpointState.model_validate_json((folder / STATE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s: not a checkpoint state (%s); left aside", folder / STATE, error.errors()[0]["msg"])
        return None


def _whole(folder: Path, state: CheckpointState) -> bool:
    with ThreadPoolExecutor(HASHERS) as pool:
        found = list(pool.map(_digest, [folder / name for name in state.files]))
    for name, digest in zip(state.files, found, strict=True):
        if state.files[name] != digest:
            log.warning("%s: missing or damaged, so this checkpoint is left aside", folder / name)
            return False
    return True


def _digest(path: Path) -> str | None:
    """sha256 of what is in the file now: a digest remembered by size and time would not see damage."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        return None


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Flusher:
    """Flushes a folder's growing files again and again until it is left."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._done = folder, threading.Event()
        self._thread = threading.Thread(target=self._work, name="flusher", daemon=True)

    def _work(self) -> None:
        while not self._done.wait(0.05):
            for path in _files(self._folder):
                with suppress(OSError):
                    _fsync(path)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _files(folder: Path) -> Iterable[Path]:
    with suppress(OSError):
        yield from [p for p in folder.rglob("*") if p.is_file()]
