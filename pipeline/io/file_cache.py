"""Cache, in the user's cache folder, of data derived from a file: its digest or index.

Every entry is a file of its own, written atomically and deterministic, so processes need no locks.
Entries may be deleted at any time; the entry of a changed file is ignored and overwritten.
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
from pipeline.io.files import call_store, read_small
from pipeline.io.paths import is_url
from pipeline.io.virtual_shards import ImageTable, virtual_shard

Kind = Literal["digests", "indexes"]
CACHED_FROM = 4 << 20
"""Bytes: smaller local files are not cached, as deriving the data again is cheaper."""
RACY_NS = 2_000_000_000
"""A file modified this recently is not cached: it may change again with the same mtime."""
VERSION_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "crc32c")


@dataclass(frozen=True)
class FileVersion:
    """Identity of a file's content: size and mtime; of a remote object entity tag and size.

    large: the file is large enough to be cached. mtime_ns: None for a remote object.
    """

    text: str
    large: bool
    mtime_ns: int | None = None


def file_version(path: str) -> FileVersion | None:
    """Current version of a file, or of a virtual shard's files; None for a remote object without an entity tag.

    Raises:
        InputError: the file does not exist, or a virtual shard's source has other images now.
    """
    if (shard := virtual_shard(path)) is not None:
        source = shard.open()
        if isinstance(source, ImageTable):
            return file_version(shard.source)
        text, size, changed = source.stats(shard.number)
        return FileVersion(text, size >= CACHED_FROM, changed)
    if is_url(path):
        info = call_store(path, lambda fs, inner: fs.info(inner))
        tag = next((str(info[name]).strip('"') for name in VERSION_TAGS if info.get(name)), None)
        return None if tag is None else FileVersion(f"tag {tag} of {info.get('size')} bytes", large=True)
    try:
        stat = Path(path).stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    return FileVersion(f"{stat.st_size} {stat.st_mtime_ns}", stat.st_size >= CACHED_FROM, stat.st_mtime_ns)


def cache_get(kind: Kind, path: str, version: FileVersion) -> bytes | None:
    """Cached data of this version of a file; None if there is none."""
    if version.large:
        header = f"{version.text} ".encode()
        with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home folder
            entry = read_small(_entry_path(kind, path))
            if entry.startswith(header):
                return entry[len(header) :]
    return None


def cache_put(kind: Kind, path: str, version: FileVersion, data: bytes) -> None:
    """Cache data derived from this version of a file, if there is a writable cache folder."""
    if not version.large or (version.mtime_ns is not None and time.time_ns() - version.mtime_ns <= RACY_NS):
        return
    with suppress(OSError, RuntimeError):
        write_atomic(_entry_path(kind, path), f"{version.text} ".encode() + data, durable=False)


def _entry_path(kind: Kind, path: str) -> Path:
    """Path of an entry below the user's cache folder (XDG base directory specification)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glip-self-train" / kind
    return cache / hashlib.sha256(os.fsencode(path if is_url(path) else os.path.abspath(path))).hexdigest()
