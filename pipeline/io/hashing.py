"""SHA-256 digests of files and configurations, and the fingerprint of a stage's output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.io.file_cache import FileVersion, cache_get, cache_put, file_version
from pipeline.io.files import open_file
from pipeline.io.paths import is_url
from pipeline.io.virtual_shards import ImageTable, virtual_shard


def digest_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: str | Path) -> str:
    """Identifier of a file's content: SHA-256 in hex; of a remote object its entity tag; of a virtual shard
    a digest of its keys and its files' content.

    An entity tag (ETag, MD5, CRC) changes with the content and needs no download. Digests of large
    local files are cached on disk by path, size and mtime, so that a restart does not read
    terabytes again.

    Raises:
        InputError: the file does not exist, or a virtual shard's source has other images now.
    """
    path = str(path)
    version = file_version(path)
    if version is None:
        return _digest_stream(path)
    return version.text if is_url(path) else _digest_local(path, version)


@lru_cache(maxsize=8192)
def _digest_local(path: str, version: FileVersion) -> str:
    cached = cache_get("digests", path, version)
    if cached is not None and len(cached) == 64 and cached.isalnum():
        return cached.decode()
    digest = _digest_stream(path)
    cache_put("digests", path, version, digest.encode())
    return digest


def _digest_stream(path: str) -> str:
    if (shard := virtual_shard(path)) is not None:
        source = shard.open()
        if isinstance(source, ImageTable):
            return digest_json([digest_file(shard.source), source.identity(shard.number)])
        return source.content_digest(shard.number)
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def digest_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def fingerprint(
    stage: str,
    *,
    version: int,
    config: BaseModel | Mapping[str, Any],
    inputs: Mapping[str, str],
    **extra: str,
) -> str:
    """Digest of all that an output depends on; ``inputs``: name -> digest."""
    settings = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    return digest_json({"stage": stage, "version": version, "config": settings, "inputs": dict(inputs), "extra": extra})


def hash_share(text: str) -> float:
    """Uniform number in [0, 1) that depends on the text alone, such as for a split by key."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
