"""Sample keys, made from image ids, from annotation rows or from crawl keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote

MAX_LENGTH, KEPT_LENGTH = 180, 150
"""Bytes. Keys become parts of file names, which have at most 255."""


def image_key(image_id: Any) -> str:
    """Sample key of an image id, valid as a tar member's base name.

    Everything but ASCII letters, digits, "-", "_" and "~" is percent-encoded, so that different
    strings have different keys (a number and a string may collide, which the index checks). A long
    key is cut and a digest is appended.
    """
    if isinstance(image_id, int):
        return f"{image_id:09d}"
    return _shorten(quote(str(image_id), safe="", errors="surrogatepass").replace(".", "%2E") or "%")


def row_key(row: Mapping[str, Any]) -> str | None:
    """Key stated in an annotation row, as export-labels writes it; encoded if invalid."""
    key = row.get("key")
    if not isinstance(key, str) or not key:
        return None
    return _shorten(key) if _KEY.fullmatch(key) else image_key(key)


def shard_key(key: str) -> str:
    """Key for a training shard from a crawl key: encoded only if it has a slash, dot or percent."""
    return image_key(key) if {"/", ".", "%"} & set(key) else key


def _shorten(key: str) -> str:
    """Limit the length. ``%~`` is in no encoded key, so a shortened key is unique."""
    return key if len(key) <= MAX_LENGTH else f"{key[:KEPT_LENGTH]}%~{sha256(key.encode()).hexdigest()[:16]}"


_KEY = re.compile(r"[A-Za-z0-9_~%-]+")
