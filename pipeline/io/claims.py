"""Who works on which shard: several processes, machines or runs can share one output folder.

A claim is a small file ``.SHARD.claim`` beside the outputs. Outputs are atomic and the same bytes whoever makes them, so a
claim is a courtesy that saves work, never what correctness rests on. The owner renews its claims; one that stands still,
or whose process is gone from this machine, is void.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.io.commit import write_atomic
from pipeline.io.files import create_exclusively, listing, read_bytes, remove
from pipeline.io.paths import join

log = logging.getLogger("glip_self_train")

RENEW_SECONDS = 20.0
STILL_SECONDS = 90.0
"""A claim of another machine that nobody renewed for so long, while we watched, is void: no clock but ours is asked."""


@cache
def _here() -> str:
    """This machine since it booted, and this process namespace (a container's pids are its own)."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id",):
        parts.append(Path(path).read_text().strip() if Path(path).exists() else "")
    try:
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append("")
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's words; None if there is none."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if state == "Z" else others[18]  # killed, though nobody has asked what became of it
    except (OSError, IndexError):
        pass
    try:  # no /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""


def _dead(claim: Mapping[str, Any]) -> bool:
    """Whether the claim's owner was a process of this machine that is gone."""
    return claim.get("host") == _here() and _started(int(claim.get("pid", -1))) != claim.get("started")


class Claims:
    """The claims of this process in one output folder. Usable from any thread."""

    def __init__(self, out: str | Path) -> None:
        self._out = str(out)
        self._mine: dict[str, int] = {}
        self._watched: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewer: threading.Thread | None = None

    def _path(self, name: str) -> str:
        return join(self._out, f".{name}.claim")

    def _text(self, beat: int) -> bytes:
        me = {"host": _here(), "pid": os.getpid(), "started": _started(os.getpid()), "beat": beat}
        return json.dumps(me, sort_keys=True).encode()

    def take(self, name: str) -> bool:
        """Claim a shard. False while another process has it."""
        path = self._path(name)
        if not create_exclusively(path, self._text(0)):
            held = read_bytes(path)
            if held is not None and not self._void(name, held):
                return False
            remove(path)
            if not create_exclusively(path, self._text(0)):
                return False
        with self._lock:
            self._mine[name] = 0
            if self._renewer is None:
                self._renewer = threading.Thread(target=self._renew, name="claims", daemon=True)
                self._renewer.start()
        return True

    def _void(self, name: str, held: bytes) -> bool:
        try:
            if _dead(json.loads(held)):
                return True
        except (ValueError, AttributeError):
            pass  # not one of ours: void once it has stood still
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

    def release(self, name: str) -> None:
        """Give a shard up, done or not."""
        with self._lock:
            self._mine.pop(name, None)
        remove(self._path(name))

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with self._lock:
                mine = list(self._mine)
            for name in mine:
                with self._lock:
                    if name not in self._mine:
                        continue
                    self._mine[name] += 1
                    try:
                        write_atomic(self._path(name), self._text(self._mine[name]))
                    except Exception as error:  # the claim may lapse; the work may not stop for it
                        log.debug("claim of %s not renewed: %s", name, error)

    def close(self) -> None:
        """Give up what is still claimed."""
        self._ended.set()
        for name in list(self._mine):
            self.release(name)


def clear_claims(out: str | Path) -> int:
    """Remove the claims of this machine's processes that are gone (killed). Returns how many."""
    removed = 0
    for path in listing(out, ".claim"):
        try:
            void = _dead(json.loads(read_bytes(path) or b"{}"))
        except (ValueError, AttributeError):
            continue
        if void:
            remove(path)
            removed += 1
    return removed
