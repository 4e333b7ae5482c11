"""Digests: of files, of model folders, of configurations; and the fingerprint they make together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.io.file_cache import Mark, cache_get, cache_put, mark_of
from pipeline.io.files import open_file
from pipeline.io.paths import is_url


def digest_bytes(data: bytes) -> str:
    """sha256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: str | Path) -> str:
    """What identifies a file's content: sha256 in hex; of an object behind a URL the tag that its store keeps.

    A store's tag (ETag, MD5, CRC) changes whenever the content does, and asking for it reads nothing. Local files of some
    size are remembered on disk by (path, size, mtime), so that a restart does not read terabytes to find them unchanged.

    Raises:
        InputError: the file is not there.
    """
    path = str(path)
    mark = mark_of(path)
    if mark is None:
        return _digest_stream(path)
    return mark.text if is_url(path) else _digest_local(path, mark)


@lru_cache(maxsize=8192)
def _digest_local(path: str, mark: Mark) -> str:
    known = cache_get("digests", path, mark)
    if known is not None and len(known) == 64 and known.isalnum():
        return known.decode()
    found = _digest_stream(path)
    cache_put("digests", path, mark, found.encode())
    return found


def _digest_stream(path: str) -> str:
    state = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a value's canonical JSON (sorted keys, no spaces)."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode())


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"cannot digest a {type(value).__name__}")


def fingerprint(
    stage: str,
    *,
    version: int,
    config: BaseModel | Mapping[str, Any],
    inputs: Mapping[str, str],
    **extra: str,
) -> str:
    """What an output is a function of, as one digest: stage, schema version, settings, inputs' digests, revisions."""
    settings = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    return digest_json({"stage": stage, "version": version, "config": settings, "inputs": dict(inputs), "extra": extra})
