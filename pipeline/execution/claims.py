"""Who works on which shard: several processes, machines or runs can share one output folder.

A claim is a small file ``.SHARD.claim`` beside the outputs. Outputs are atomic and the same bytes whoever makes them, so a
claim is a courtesy that saves work, never what correctness rests on. (Who rests more on it asks :meth:`Claims.holds`.) The owner
renews its claims; one that stands still, or whose process is gone from this machine, is void.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.io.atomic import write_atomic
from pipeline.io.files import filesystem, listing, read_bytes, remove, store_errors, with_retries
from pipeline.io.paths import is_url, join
from pipeline.io.temporaries import temporary_beside
from pipeline.system.process_identity import host_identity, process_start

log = logging.getLogger("glip_self_train")

RENEW_SECONDS = 20.0
STILL_SECONDS = 90.0
"""A claim of another machine that nobody renewed for so long, while we watched, is void: no clock but ours is asked."""


def _alive(claim: bytes) -> bool | None:
    """Whether a claim's owner, a process of this machine, is there; None: it is another machine's, or no claim of ours."""
    try:
        owner: dict[str, Any] = json.loads(claim)
        if owner.get("host") != host_identity():
            return None
        now = process_start(int(owner.get("pid", -1)))
        if now == "" and owner.get("started"):
            return None  # hidden from us (another user's, under hidepid): it, or another that has its number now
        return now == owner.get("started")
    except (ValueError, TypeError, AttributeError):
        return None


class Claims:
    """The claims of this process in one output folder. Usable from any thread."""

    def __init__(self, out: str | Path) -> None:
        self._out = str(out)
        self._by = secrets.token_hex(8)
        self._mine: dict[str, int] = {}
        self._watched: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewer: threading.Thread | None = None

    def _path(self, name: str) -> str:
        return join(self._out, f".{name}.claim")

    def _text(self, beat: int) -> bytes:
        me = {
            "host": host_identity(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "by": self._by,
            "beat": beat,
        }
        return json.dumps(me, sort_keys=True).encode()

    def _ours(self, claim: bytes | None) -> bool:
        try:
            return bool(json.loads(claim or b"{}").get("by") == self._by)
        except (ValueError, AttributeError):
            return False

    def take(self, name: str) -> bool:
        """Claim a shard. False while another process has it."""
        path = self._path(name)
        with one_at_a_time(self._out):
            if not create_exclusively(path, self._text(0)):
                held = read_bytes(path)
                lost_answer = self._ours(held) and name not in self._mine  # it was made, though the store did not tell
                if held is not None and not (lost_answer or (self._void(name, held) and remove_if(path, held))):
                    return False
                if not lost_answer and not create_exclusively(path, self._text(0)):
                    return False
        with self._lock:
            self._mine[name] = 0
            if self._renewer is None:
                self._renewer = threading.Thread(target=self._renew, name="claims", daemon=True)
                self._renewer.start()
        return True

    def _void(self, name: str, held: bytes) -> bool:
        if (alive := _alive(held)) is not None:
            return not alive
        now = time.monotonic()
        seen, since = self._watched.get(name, (b"", now))
        if seen != held:
            self._watched[name] = (held, now)
            return False
        return now - since > STILL_SECONDS

    def holder(self, name: str) -> str | None:
        """Who has claimed it, for people: "process 123 on HOST". None if nobody has."""
        try:
            claim = json.loads(read_bytes(self._path(name)) or b"null")
            return claim and f"process {claim['pid']} on {claim['host'].split()[0]}"
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return "somebody unknown"

    def holds(self, name: str) -> bool:
        """Whether a claim that was taken is still ours: it is lost if it stood still (a disk that hung, a process that was stopped)."""
        with self._lock:
            return name in self._mine and self._ours(read_bytes(self._path(name)))

    def release(self, name: str) -> None:
        """Give a shard up, done or not. One that was not ours is left alone."""
        with self._lock, one_at_a_time(self._out):
            if self._mine.pop(name, None) is not None and self._ours(read_bytes(self._path(name))):
                remove(self._path(name))

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            for name in list(self._mine):
                with self._lock:
                    if name in self._mine:
                        try:
                            self._renew_one(name)
                        except Exception as error:  # the claim may lapse; the work may not stop for it
                            log.debug("claim of %s not renewed: %s", name, error)

    def _renew_one(self, name: str) -> None:
        path, beat = self._path(name), self._mine[name] + 1
        with one_at_a_time(self._out):
            if self._ours(read_bytes(path)):
                write_atomic(path, self._text(beat))
            elif not create_exclusively(path, self._text(beat)) and not self._ours(read_bytes(path)):
                del self._mine[name]
                log.warning("%s: another run has %s now, as our claim stood still", self._out, name)
                return
        self._mine[name] = beat

    def close(self) -> None:
        """Give up what is still claimed."""
        self._ended.set()
        for name in list(self._mine):
            self.release(name)


def clear_claims(out: str | Path) -> int:
    """Remove the claims of this machine's processes that are gone (killed). Returns how many."""
    removed = 0
    for path in listing(out, ".claim"):
        claim = read_bytes(path)
        if claim is not None and _alive(claim) is False:
            removed += remove_if(path, claim)
    return removed


@contextmanager
def one_at_a_time(folder: str | Path) -> Iterator[None]:
    """Keep this machine's other processes (and threads) that ask for the same folder out, for moments. Buckets and some network disks cannot."""
    handle = -1
    if not is_url(folder):
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle >= 0:
            with suppress(OSError):  # closing is not enough: a process forked meanwhile has the handle, too
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def create_exclusively(path: str | Path, data: bytes) -> bool:
    """Make a small file unless there is one of the name. Whether it was made."""
    if is_url(path):
        fs, inner = filesystem(str(path))

        def create() -> bool:
            if fs.exists(inner):
                return False
            try:
                fs.pipe_file(inner, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                    return False
                raise
            return True

        with store_errors(str(path)):
            return with_retries(str(path), create)
    path = Path(path)
    temporary = temporary_beside(path)
    temporary.write_bytes(data)
    try:
        os.link(temporary, path)  # unlike a rename it fails if the name is taken, and the file is never half there
        return True
    except FileExistsError:
        # or a network disk had made the link, lost its answer, and was asked again
        return os.stat(temporary).st_nlink > 1
    except OSError:  # a file system without links
        with suppress(FileExistsError), open(path, "xb") as file:
            file.write(data)
            return True
        return False
    finally:
        temporary.unlink(missing_ok=True)


def remove_if(path: str | Path, data: bytes) -> bool:
    """Remove a small file if these are its bytes. Whether there is nothing of the name now, as far as we can tell.

    On a disk the file is moved away before it is looked at, so that one which was made meanwhile is not removed.
    """
    if is_url(path):
        if read_bytes(path) not in (None, data):
            return False
        remove(path)
        return True
    path = Path(path)
    aside = temporary_beside(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    try:
        if aside.read_bytes() == data:
            return True
        with suppress(OSError):
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)
