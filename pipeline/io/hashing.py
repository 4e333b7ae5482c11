"""Digests: of files, of model folders, of configurations; and the fingerprint they make together."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.errors import InputError
from pipeline.io.files import filesystem, named_errors, open_file, patiently
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
    if is_url(path):
        return _remote_tag(path) or _digest_stream(path)
    try:
        stat = Path(path).stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    return _digest_local(path, stat.st_size, stat.st_mtime_ns)


TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "crc32c")


def _remote_tag(url: str) -> str | None:
    fs, inner = filesystem(url)
    with named_errors(url):
        info = patiently(url, lambda: fs.info(inner))
    found = next((str(info[tag]).strip('"') for tag in TAGS if info.get(tag)), None)
    return None if found is None else f"tag {found} of {info.get('size')} bytes"


@lru_cache(maxsize=8192)
def _digest_local(path: str, size: int, mtime_ns: int) -> str:
    if size < REMEMBERED_FROM:
        return _digest_stream(path)
    note = _notes() / digest_bytes(os.path.abspath(path).encode())
    stamp = f"{size} {mtime_ns} "
    with suppress(OSError):
        known = note.read_text()
        if known.startswith(stamp):
            return known.removeprefix(stamp)
    found = _digest_stream(path)
    if time.time_ns() - mtime_ns > SETTLED_NS:  # a younger file might change again without a new time
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            temporary = note.with_name(f"{note.name}.{os.getpid()}")
            temporary.write_text(stamp + found)
            os.replace(temporary, note)
    return found


REMEMBERED_FROM = 4 << 20
SETTLED_NS = 2_000_000_000


def _notes() -> Path:
    """The user's cache folder, as the XDG base directory specification has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glip-self-train" / "digests"


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


def model_revision(folder: str | Path) -> str:
    """Twelve hex digits that change whenever a weight or the configuration of a model folder changes.

    Raises:
        InputError: ``folder`` has no config.json, so it is no model folder.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json in it; want a model folder as save_pretrained writes it")
    names = sorted(
        p.name
        for p in folder.iterdir()
        if p.suffix in {".json", ".safetensors", ".txt", ".bin"} and p.name not in {"training_state.json"}
    )
    return digest_json({name: digest_file(folder / name) for name in names})[:12]


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
