"""Path operations that work on local paths and URLs alike."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline.errors import InputError

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Endings of compressed shards, which are read sequentially only."""
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
"""File extensions of images, in shards and in folders."""
_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(path: str | Path) -> bool:
    """Whether ``path`` is a URL, such as ``s3://bucket/key``, and not a local path."""
    return bool(_URL.match(str(path)))


def is_hidden(path: str) -> bool:
    """Whether a relative path has a hidden part, which is no data: macOS's ``._0001.jpg`` and
    ``__MACOSX``, an editor's ``.ipynb_checkpoints``.
    """
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in path.split("/"))


def is_image_name(path: str) -> bool:
    """Whether a file's name has one of IMAGE_EXTENSIONS, in any case, and is not hidden."""
    name, _, extension = path.rsplit("/", 1)[-1].rpartition(".")
    return bool(name) and not is_hidden(name) and extension.lower() in IMAGE_EXTENSIONS


def local_folder(folder: str | Path, what: str) -> Path:
    """``folder`` as a Path, for outputs that need a file system.

    Raises:
        InputError: ``folder`` is a URL, which as a path would create a folder named ``s3:``.
    """
    if is_url(folder):
        raise InputError(f"{folder}: {what} wants a folder on a file system; only shards and labels may be at URLs")
    return Path(folder)


def no_folder(path: str | Path) -> str:
    """Words for a path that is not, and cannot become, a folder."""
    for there in (Path(path), *Path(path).parents):
        if there.is_symlink() and not there.exists():
            return f"{path}: {there} is a link to {os.readlink(there)}, which is not there; want a folder"
    return f"{path}: is, or is below, a file; want a folder"


def join(folder: str | Path, name: str) -> str:
    """``folder/name``."""
    return f"{str(folder).rstrip('/')}/{name}"


def resolve_path(base: str | Path, path: str) -> str:
    """``path`` resolved against ``base``; absolute paths and URLs are returned unchanged."""
    return path if is_url(path) or path.startswith("/") else join(base, path)


def parent(folder: str | Path) -> str:
    """Parent folder of a file or folder."""
    if is_url(folder):
        return str(folder).rstrip("/").rsplit("/", 1)[0]
    return str(Path(folder).absolute().parent) if str(folder) in {".", ""} else str(Path(folder).parent)


def stem(shard: str | Path) -> str:
    """File name without its suffix (``000017``, ``laion.part.00000``), which a shard shares with its
    phrases and regions.
    """
    name = str(shard).rstrip("/").rsplit("/", 1)[-1]
    for suffix in (*COMPRESSED_TARS, ".report.json"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name.rsplit(".", 1)[0]
