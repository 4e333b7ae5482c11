"""What a sample is called in its set: by what its row calls it, or by its image's id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote


def image_key(image_id: Any) -> str:
    """A sample's key from an image's id: unique in the set, and free of what tar keys cannot have.

    Everything but ASCII letters, digits, "-", "_" and "~" is percent-encoded, so that no two ids share a key. A number
    and a text may: the index looks for that.
    """
    if isinstance(image_id, int):
        return f"{image_id:09d}"
    return quote(str(image_id), safe="", errors="surrogatepass").replace(".", "%2E") or "%"


def own_key(row: Mapping[str, Any]) -> str | None:
    """The key that a row names beside its id, as export writes it; made fit for a tar where it is not."""
    key = row.get("key")
    if not isinstance(key, str) or not key:
        return None
    return key if _KEY.fullmatch(key) else image_key(key)


_KEY = re.compile(r"[A-Za-z0-9_~%-]+")
