"""Host and process identity, for detecting stale claims and temporary files on shared folders."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def host_identity() -> str:
    """Host name, boot id and pid namespace (a container has pids of its own), separated by spaces."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts.append(boot.read_text().strip() if boot.exists() else "")
    try:
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append("")
    return " ".join(parts)


@cache
def short_host_identity() -> str:
    """Hash of :func:`host_identity` in eight hex digits, for file names."""
    return hashlib.sha256(host_identity().encode()).hexdigest()[:8]


def process_start(pid: int) -> str | None:
    """Start time of a process on this machine, in clock ticks since boot as /proc states it.

    None if there is no such process or it is a zombie; "" where there is no /proc.
    """
    with suppress(OSError, IndexError):
        state, *others = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if state == "Z" else others[18]
    with suppress(PermissionError):  # no /proc, or no such process
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
    return ""
