"""What was found out about a file at some cost, in the user's cache folder, for as long as the file stays as it is.

Every entry is a file of its own that appears whole, so that processes need not wait for each other: the same is found whoever looks.
Entries may be deleted at any time; one of a file that changed is not looked at, and replaced.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from pipeline.io.atomic import write_atomic
from pipeline.io.files import filesystem, named_errors, patiently, read_small
from pipeline.io.paths import is_url

Kind = Literal["digests", "indexes"]
REMEMBERED_FROM = 4 << 20
"""Bytes of a local file from which on it costs less to remember than to find out."""
SETTLED_NS = 2_000_000_000
TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "crc32c")


@dataclass(frozen=True)
class Mark:
    """What changes whenever a file does: size and time of a local one; the tag that a store keeps of an object behind a URL.

    ``mtime_ns`` is None behind a URL, and ``large`` is whether there is enough to it to be remembered.
    """

    text: str
    large: bool
    mtime_ns: int | None = None


def mark_of(path: str) -> Mark | None:
    """The mark of a file as it is now; None of an object whose store keeps no tag.

    Raises:
        InputError: the file is not there.
    """
    if is_url(path):
        fs, inner = filesystem(path)
        with named_errors(path):
            info = patiently(path, lambda: fs.info(inner))
        found = next((str(info[tag]).strip('"') for tag in TAGS if info.get(tag)), None)
        return None if found is None else Mark(f"tag {found} of {info.get('size')} bytes", large=True)
    try:
        stat = Path(path).stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    return Mark(f"{stat.st_size} {stat.st_mtime_ns}", stat.st_size >= REMEMBERED_FROM, stat.st_mtime_ns)


def cache_get(kind: Kind, path: str, mark: Mark) -> bytes | None:
    """What was remembered of a file with this mark; None if nothing was."""
    if not mark.large:
        return None
    stamp = f"{mark.text} ".encode()
    with suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        known = read_small(_note(kind, path))
        if known.startswith(stamp):
            return known[len(stamp) :]
    return None


def cache_put(kind: Kind, path: str, mark: Mark, found: bytes) -> None:
    """Keep what was found out about a file that had this mark before. Without a place to keep it nothing happens."""
    if not mark.large:
        return
    if mark.mtime_ns is not None and time.time_ns() - mark.mtime_ns <= SETTLED_NS:
        return  # so young a file might change again without a new time
    with suppress(OSError, RuntimeError):
        write_atomic(_note(kind, path), f"{mark.text} ".encode() + found, durable=False)


def _note(kind: Kind, path: str) -> Path:
    """In the user's cache folder, as the XDG base directory specification has it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glip-self-train" / kind
    return cache / hashlib.sha256(os.fsencode(path if is_url(path) else os.path.abspath(path))).hexdigest()
