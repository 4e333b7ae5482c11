"""Names of temporary files, and removal of those whose process has died.

Machines and containers that share a folder have separate process ids, so the name includes a hash
of the host.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from pipeline.io.paths import is_url
from pipeline.system.process_identity import process_start, short_host_identity

ABANDONED_SECONDS = 24 * 3600.0
"""Age from which another host's temporary file counts as left by a dead process."""
_MAX_NAME_BYTES = 180
"""Bytes of the final name kept in a temporary name; file systems allow 255 in all."""
_COUNTER = itertools.count()
_TEMPORARY = re.compile(r"\..*\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-\d+\.tmp", re.DOTALL)


def temporary_beside(path: Path) -> Path:
    """Unique path in the same folder for writing ``path``; names host and process."""
    name = path.name.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    return path.with_name(f".{name}.{short_host_identity()}-{os.getpid()}-{next(_COUNTER)}.tmp")


def clear_temporaries(out: str | Path) -> int:
    """Remove dead processes' temporary files, other hosts' after a day; returns the number."""
    removed = 0
    for path in () if is_url(out) or not Path(out).is_dir() else list(Path(out).glob(".*.tmp")):
        if (match := _TEMPORARY.fullmatch(path.name)) is None:
            continue
        with suppress(FileNotFoundError):  # another run may remove it first
            if match["host"] == short_host_identity():
                abandoned = process_start(int(match["pid"])) is None
            else:
                abandoned = time.time() - path.stat().st_mtime > ABANDONED_SECONDS
            if abandoned:
                path.unlink()
                removed += 1
    return removed
