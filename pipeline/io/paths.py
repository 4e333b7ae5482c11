"""Names of shards: brace patterns, globs and URLs."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import InputError

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(path: str | Path) -> bool:
    """True for ``s3://bucket/key`` and its like, false for local paths."""
    return bool(_URL.match(str(path)))


def local_folder(folder: str | Path, what: str) -> Path:
    """The path of a folder that has to lie on a disk.

    Raises:
        InputError: it is a URL, which as a path would name a folder ``s3:`` here.
    """
    if is_url(folder):
        raise InputError(
            f"{folder}: {what} wants a folder on a disk (local, or shared by the machines); only shards and labels may lie behind URLs"
        )
    return Path(folder)


def join(folder: str | Path, name: str) -> str:
    """``folder/name`` for paths and URLs alike."""
    return f"{str(folder).rstrip('/')}/{name}"


def located(base: str | Path, path: str) -> str:
    """A path that is relative to ``base``; absolute ones and URLs stand as they are."""
    return path if is_url(path) or path.startswith("/") else join(base, path)


def parent(folder: str | Path) -> str:
    """The folder that a folder lies in, for paths and URLs alike."""
    if is_url(folder):
        return str(folder).rstrip("/").rsplit("/", 1)[0]
    return str(Path(folder).absolute().parent) if str(folder) in {".", ""} else str(Path(folder).parent)


def stem(shard: str | Path) -> str:
    """``crawl/000017.tar`` -> ``000017``: the name that joins a shard to its phrases, regions and labels."""
    return str(shard).rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]
