"""What a sample is called in its set: by what its row calls it, or by its image's id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote

LONGEST, BEGINNING = 180, 150
"""Bytes: a file system takes 255, and an extension and what marks a file that is being written come on top."""


def image_key(image_id: Any) -> str:
    """A sample's key from an image's id: unique in the set, and free of what tar keys cannot have.

    Everything but ASCII letters, digits, "-", "_" and "~" is percent-encoded, so that no two ids share a key. A number
    and a text may: the index looks for that. Of a long one its beginning stays, and a digest of it: keys become names of files.
    """
    if isinstance(image_id, int):
        return f"{image_id:09d}"
    key = quote(str(image_id), safe="", errors="surrogatepass").replace(".", "%2E") or "%"
    return _cut(key)


def own_key(row: Mapping[str, Any]) -> str | None:
    """The key that a row names beside its id, as export writes it; made fit for a tar where it is not."""
    key = row.get("key")
    if not isinstance(key, str) or not key:
        return None
    return _cut(key) if _KEY.fullmatch(key) else image_key(key)


def fitting_key(key: str) -> str:
    """A crawl's key as a key of our shards: as it is, but where it names a folder or has a dot; no two keys become one."""
    return image_key(key) if {"/", ".", "%"} & set(key) else key


def _cut(key: str) -> str:
    """``%~`` stands in no encoded text, so that no whole key is like a cut one."""
    return key if len(key) <= LONGEST else f"{key[:BEGINNING]}%~{sha256(key.encode()).hexdigest()[:16]}"


_KEY = re.compile(r"[A-Za-z0-9_~%-]+")
