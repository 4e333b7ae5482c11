"""Unique keys and image ids for the images of a set, tracked on disk as a set may have millions."""

from __future__ import annotations

import re
import sqlite3
import tempfile
from types import TracebackType
from typing import NamedTuple

_NUMBERED = re.compile(r"\d{9,12}", re.ASCII)
_FIRST_OTHER_ID = 10**12
"""Larger than any id made of a key."""


class Name(NamedTuple):
    """An image's key and id, and whether the key was changed to be unique."""

    key: str
    number: int
    renamed: bool


class UniqueNames:
    """Assigns names. A key that is a number of nine digits, as of COCO's images, gives that number
    as the id; in a set whose first key is not, the ids count from 1.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="glip-self-train-")
        self._db = sqlite3.connect(f"{self._folder.name}/keys", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-16000"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE keys (part TEXT, key TEXT, PRIMARY KEY (part, key)) WITHOUT ROWID")
        self._db.execute("BEGIN")
        self._numbered: dict[str, bool] = {}
        self._count: dict[str, int] = {}

    def take(self, set_name: str, key: str) -> Name:
        """Name of the next image of a set. Repeated keys get suffixes ``~2``, ``~3``, ..."""
        unique, n = key, 1
        while not self._db.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (set_name, unique)).rowcount:
            n += 1
            unique = f"{key}~{n}"
        count = self._count[set_name] = self._count.get(set_name, 0) + 1
        digits = bool(_NUMBERED.fullmatch(unique)) and f"{int(unique):09d}" == unique
        if not self._numbered.setdefault(set_name, digits):
            return Name(unique, count, n > 1)
        return Name(unique, int(unique) if digits else _FIRST_OTHER_ID + count, n > 1)

    def __enter__(self) -> UniqueNames:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()
        self._folder.cleanup()
