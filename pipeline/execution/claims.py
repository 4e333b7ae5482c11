"""Claims on shards, so that several processes, machines or runs can share one output folder.

A claim is a small file ``.SHARD.claim`` beside the outputs. It avoids duplicate work only: outputs
are written atomically and with the same bytes by every process. (Callers that need exclusion check
:meth:`Claims.holds`.) The owner renews its claims; a claim expires when it is no longer renewed, or
when its process has exited on this host.
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
"""A claim of another host expires when this process has seen it unchanged for so long. The time is
measured on this host's clock alone.
"""


def _owner_alive(claim: bytes) -> bool | None:
    """Whether a claim's owner is running on this host; None if it is elsewhere or unreadable."""
    try:
        owner: dict[str, Any] = json.loads(claim)
        if owner.get("host") != host_identity():
            return None
        now = process_start(int(owner.get("pid", -1)))
        if now == "" and owner.get("started"):
            return None  # another user's process under hidepid: the owner, or a later one with its pid
        return now == owner.get("started")
    except (ValueError, TypeError, AttributeError):
        return None


def holder_alive(out: str | Path, name: str) -> bool | None:
    """Whether the process that holds ``name`` runs; False also if none holds it; None if that cannot be known here."""
    held = read_bytes(join(out, f".{name}.claim"))
    return False if held is None else _owner_alive(held)


class Claims:
    """The claims of this process in one output folder. Thread-safe."""

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
        owner = {
            "host": host_identity(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "by": self._by,
            "beat": beat,
        }
        return json.dumps(owner, sort_keys=True).encode()

    def _ours(self, claim: bytes | None) -> bool:
        try:
            return bool(json.loads(claim or b"{}").get("by") == self._by)
        except (ValueError, AttributeError):
            return False

    def take(self, name: str) -> bool:
        """Claim a shard. Returns False while another process holds it."""
        path = self._path(name)
        with flocked(self._out):
            if not create_exclusively(path, self._text(0)):
                held = read_bytes(path)
                created = self._ours(held) and name not in self._mine  # by the call above: its response was lost
                if held is not None and not (created or (self._expired(name, held) and remove_if_equal(path, held))):
                    return False
                if not created and not create_exclusively(path, self._text(0)):
                    return False
        with self._lock:
            self._mine[name] = 0
            if self._renewer is None:
                self._renewer = threading.Thread(target=self._renew, name="claims", daemon=True)
                self._renewer.start()
        return True

    def _expired(self, name: str, held: bytes) -> bool:
        if (alive := _owner_alive(held)) is not None:
            return not alive
        now = time.monotonic()
        seen, since = self._watched.get(name, (b"", now))
        if seen != held:
            self._watched[name] = (held, now)
            return False
        return now - since > STILL_SECONDS

    def holder(self, name: str) -> str | None:
        """The process that holds a shard, as "process 123 on HOST"; None if there is none."""
        try:
            claim = json.loads(read_bytes(self._path(name)) or b"null")
            return claim and f"process {claim['pid']} on {claim['host'].split()[0]}"
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return "an unknown process"

    def holds(self, name: str) -> bool:
        """Whether this process still holds a claim that it took.

        It is lost if it was not renewed in time: the disk hung, or the process was stopped.
        """
        with self._lock:
            return name in self._mine and self._ours(read_bytes(self._path(name)))

    def release(self, name: str) -> None:
        """Release a shard, done or not. A claim of another process stays."""
        with self._lock, flocked(self._out):
            if self._mine.pop(name, None) is not None and self._ours(read_bytes(self._path(name))):
                remove(self._path(name))

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            for name in list(self._mine):
                with self._lock:
                    if name in self._mine:
                        try:
                            self._renew_one(name)
                        except Exception as error:  # an expired claim must not stop the work
                            log.debug("claim of %s not renewed: %s", name, error)

    def _renew_one(self, name: str) -> None:
        path, beat = self._path(name), self._mine[name] + 1
        with flocked(self._out):
            if self._ours(read_bytes(path)):
                write_atomic(path, self._text(beat))
            elif not create_exclusively(path, self._text(beat)) and not self._ours(read_bytes(path)):
                del self._mine[name]
                log.warning("%s: another run has taken over %s, as this claim was not renewed in time", self._out, name)
                return
        self._mine[name] = beat

    def close(self) -> None:
        """Release every claim."""
        self._ended.set()
        for name in list(self._mine):
            self.release(name)


def clear_claims(out: str | Path) -> int:
    """Remove the claims of this host's dead processes. Returns the number."""
    removed = 0
    for path in listing(out, ".claim"):
        claim = read_bytes(path)
        if claim is not None and _owner_alive(claim) is False:
            removed += remove_if_equal(path, claim)
    return removed


@contextmanager
def flocked(folder: str | Path) -> Iterator[None]:
    """Hold an exclusive flock on a folder, against this host's other processes and threads.

    Without effect on URLs, and on network disks that have no locks.
    """
    handle = -1
    if not is_url(folder):
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle >= 0:
            with suppress(OSError):  # closing is not enough: a process forked meanwhile holds the same open file
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def create_exclusively(path: str | Path, data: bytes) -> bool:
    """Create a small file unless the path exists. Returns whether it was created."""
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
        os.link(temporary, path)  # fails if the path exists, unlike a rename, and never shows part of the file
        return True
    except FileExistsError:
        # by this very call, if a network disk lost the response and repeated the request
        return os.stat(temporary).st_nlink > 1
    except OSError:  # a file system without hard links
        with suppress(FileExistsError), open(path, "xb") as file:
            file.write(data)
            return True
        return False
    finally:
        temporary.unlink(missing_ok=True)


def remove_if_equal(path: str | Path, data: bytes) -> bool:
    """Remove a small file if it holds these bytes. Returns whether the path is free now.

    A local file is renamed before it is read, so that one created meanwhile is not removed.
    """
    if is_url(path):
        if read_bytes(path) not in (None, data):
            return False
        remove(path)
        return True
    path = Path(path)
    renamed = temporary_beside(path)
    try:
        os.rename(path, renamed)
    except FileNotFoundError:
        return True
    try:
        if renamed.read_bytes() == data:
            return True
        with suppress(OSError):
            os.link(renamed, path)
        return False
    finally:
        renamed.unlink(missing_ok=True)
