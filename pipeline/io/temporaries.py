"""Names of files that are being written, and what becomes of those whose writer is gone.

Machines and containers that share a folder do not share process ids, so a name tells the machine, too.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from pipeline.io.paths import is_url
from pipeline.system.process_identity import short_here, started

FORSAKEN_SECONDS = 24 * 3600.0
"""What another machine has not written to for so long was left by a process that is gone, whatever its clock says."""
_LONGEST = 180
"""Bytes of the final name in a temporary one: a file system takes 255 in all."""
_NAMES = itertools.count()
_OURS = re.compile(r"\..*\.(?P<here>[0-9a-f]{8})-(?P<pid>\d+)-\d+\.tmp", re.DOTALL)


def temporary_beside(path: Path) -> Path:
    """A name of this process's own in the same folder, never given twice."""
    name = path.name.encode()[:_LONGEST].decode(errors="ignore")
    return path.with_name(f".{name}.{short_here()}-{os.getpid()}-{next(_NAMES)}.tmp")


def clear_temporaries(out: str | Path) -> int:
    """Remove what processes left that were killed in mid-write: this machine's at once, others' after a day. Returns how many."""
    removed = 0
    for path in () if is_url(out) or not Path(out).is_dir() else list(Path(out).glob(".*.tmp")):
        if (found := _OURS.fullmatch(path.name)) is None:
            continue
        with suppress(FileNotFoundError):  # another run clears, too
            if found["here"] == short_here():
                gone = started(int(found["pid"])) is None
            else:
                gone = time.time() - path.stat().st_mtime > FORSAKEN_SECONDS
            if gone:
                path.unlink()
                removed += 1
    return removed
