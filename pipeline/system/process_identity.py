"""Which machine and process this is, in words by which others who share a folder can tell whether it is still there."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path


@cache
def here() -> str:
    """This machine since it booted, and this process namespace (a container's pids are its own)."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts.append(boot.read_text().strip() if boot.exists() else "")
    try:
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        parts.append("")
    return " ".join(parts)


@cache
def short_here() -> str:
    """The same in eight characters, for the names of files."""
    return hashlib.sha256(here().encode()).hexdigest()[:8]


def started(pid: int) -> str | None:
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
