"""Keys and image ids that no other image of a set has. They are remembered on disk: a set may have millions."""

from __future__ import annotations

import re
import sqlite3
import tempfile
from types import TracebackType
from typing import NamedTuple

_NUMBERED = re.compile(r"\d{9,12}", re.ASCII)
_BEYOND = 10**12
"""Larger than any number that a key stands for."""


class Name(NamedTuple):
    """An image's key, its number, and whether the key had to be changed, as another image of the set has it."""

    key: str
    number: int
    renamed: bool


class Names:
    """Hands out names. A key that is the nine digits of a number, as of COCO's images, gives that number as the id;
    sets that begin with another key are counted through from 1."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="glip-self-train-")
        self._db = sqlite3.connect(f"{self._folder.name}/keys", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-16000"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE keys (part TEXT, key TEXT, PRIMARY KEY (part, key)) WITHOUT ROWID")
        self._db.execute("BEGIN")
        self._numbered: dict[str, bool] = {}
        self._given: dict[str, int] = {}

    def take(self, part: str, key: str) -> Name:
        """The name of the next image of a set. Of equal keys the first stays; the others get ``~2``, ``~3``, ..."""
        unique, n = key, 1
        while not self._free(part, unique):
            n += 1
            unique = f"{key}~{n}"
        given = self._given[part] = self._given.get(part, 0) + 1
        digits = bool(_NUMBERED.fullmatch(unique)) and f"{int(unique):09d}" == unique
        if not self._numbered.setdefault(part, digits):
            return Name(unique, given, n > 1)
        return Name(unique, int(unique) if digits else _BEYOND + given, n > 1)

    def _free(self, part: str, key: str) -> bool:
        return self._db.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (part, key)).rowcount == 1

    def __enter__(self) -> Names:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()
        self._folder.cleanup()
