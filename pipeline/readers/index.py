"""A set's images with their annotations, in order, on disk: what makes ingest need no memory for them.

A label file may list its annotations in any order and be of gigabytes. It is read once, row by row, into a SQLite file
in the folder for temporary files; shards then read their own images' rows from it, in any process.
"""

from __future__ import annotations

import hashlib
import marshal
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.keys import image_key
from pipeline.errors import InputError

_BATCH = 2000
Id = int | str


class Entry(NamedTuple):
    """An image of the index: its id, and what the reader has kept of its row and of its annotations' rows."""

    id: Id
    image: Any
    rows: list[Any]


@dataclass(frozen=True)
class Part:
    """The images from an id on, up to and without another, or to the end."""

    start: Id
    stop: Id | None

    def where(self, column: str) -> tuple[str, tuple[Id, ...]]:
        """SQL that says so."""
        if self.stop is None:
            return f"{column} >= ?", (self.start,)
        return f"{column} >= ? AND {column} < ?", (self.start, self.stop)


class Filling:
    """The index while it is written. Rows are numbers, texts, lists and dicts; ``about`` names the set in messages.

    They are stored with marshal, as both sides are this program on this machine: ten times faster than JSON, and exact.
    """

    def __init__(self, path: str | Path, about: str) -> None:
        self.about = about
        self._db = sqlite3.connect(path, isolation_level=None)
        # the file is thrown away after any crash, so nothing is spent on surviving one
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-4000"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE images (id, image BLOB, key TEXT)")
        self._db.execute("CREATE TABLE rows (image, row BLOB)")
        self._db.execute("CREATE TABLE header (value BLOB, digest TEXT)")
        self._images: list[tuple[Id, bytes, str | None]] = []
        self._rows: list[tuple[Id | bytes, bytes]] = []
        self._key_kinds: set[type] = set()
        self._hash = hashlib.sha256()
        self._db.execute("BEGIN")

    def image(self, number: Id, image: Any, key: str | None = None) -> None:
        """Add an image; the order of ids will be the set's order. ``key``: what its row calls it, beside its id, and its key
        then; else that is made of the id."""
        if (fit := _fit(number)) is None:
            raise InputError(f"{self.about}: image id {number!r}: want a whole number or a text")
        self._images.append((fit, _bytes(image), key))
        self._key_kinds.add(type(fit) if key is None else type(None))
        if len(self._images) >= _BATCH:
            self._flush()

    def row(self, image: Any, row: Any) -> None:
        """Add an annotation of an image, which may come later or never."""
        fit = _fit(image)
        # what no image can be called is of no image's kind: a blob, which no id is
        self._rows.append((repr(image).encode(errors="replace") if fit is None else fit, _bytes(row)))
        if len(self._rows) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._hash.update(_bytes([self._images, self._rows]))
        self._db.executemany("INSERT INTO images VALUES (?, ?, ?)", self._images)
        self._db.executemany("INSERT INTO rows VALUES (?, ?)", self._rows)
        self._images.clear()
        self._rows.clear()

    def images_of_rows(self) -> None:
        """Make an image of every id that has rows so far; for formats that list annotations only."""
        self._flush()
        self._db.execute("INSERT INTO images SELECT DISTINCT image, ?, NULL FROM rows", (_bytes(None),))

    def forget_orphan_annotations(self) -> None:
        """Remove the rows of images that are not there."""
        self._flush()
        self._db.execute("DELETE FROM rows WHERE image NOT IN (SELECT id FROM images)")

    def finish(self, header: Mapping[str, Any]) -> None:
        """Sort, and store what the reader must know of the whole set.

        With ``first_counts`` in the header, of images of one id the first stays, as does of an image's rows, each of which is a
        whole record; ``duplicates`` says how many samples went (its image and its row may both be there again).

        Raises:
            InputError: two images of one id, without that; or two of one key.
        """
        self._flush()
        header = dict(header)
        if header.pop("first_counts", False):
            images = "DELETE FROM images WHERE rowid NOT IN (SELECT min(rowid) FROM images GROUP BY id)"
            rows = """DELETE FROM rows WHERE rowid NOT IN (SELECT min(rowid) FROM rows GROUP BY image)
                AND image IN (SELECT id FROM images)"""
            header["duplicates"] = max(self._db.execute(query).rowcount for query in (images, rows))
        self._hash.update(_bytes(header))
        self._db.execute("INSERT INTO header VALUES (?, ?)", (_bytes(header), self._hash.hexdigest()))
        try:
            self._db.execute("CREATE UNIQUE INDEX image_ids ON images (id)")
        except sqlite3.IntegrityError:
            query = "SELECT id FROM images GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 1"
            (twice,) = self._db.execute(query).fetchone()
            raise InputError(f"{self.about}: image id {twice} is there twice") from None
        self._refuse_duplicate_keys()
        self._db.execute("CREATE INDEX rows_of ON rows (image)")
        self._db.execute("COMMIT")

    def _refuse_duplicate_keys(self) -> None:
        """Ids that are all numbers, or all texts, have as many keys as they are, and cost nothing here."""
        if len(self._key_kinds) < 2 and type(None) not in self._key_kinds:
            return
        self._db.create_function("key_of", 1, image_key, deterministic=True)
        query = """SELECT named, min(id), max(id) FROM (SELECT coalesce(key, key_of(id)) AS named, id FROM images)
            GROUP BY named HAVING count(*) > 1 ORDER BY named LIMIT 1"""
        if (again := self._db.execute(query).fetchone()) is not None:
            key, one, other = again
            raise InputError(f"{self.about}: two images have the key {key!r}: those of the ids {one!r} and {other!r}")

    def refuse_unknown_ids(self) -> None:
        """Of a finished index: every annotation of images that are not there means that the ids are not the images'.

        Some of them are no wonder: a list of images that was cut to a split often stands with all annotations.

        Raises:
            InputError: there are annotations, and none is of an image.
        """
        if self._db.execute(f"SELECT 1 FROM rows WHERE {_AT_HOME} LIMIT 1").fetchone() is not None:
            return
        row, image = (self._db.execute(f"SELECT {of} ORDER BY rowid LIMIT 1").fetchone() for of in _FIRST)
        if row is not None and image is not None:
            said = row[0].decode() if isinstance(row[0], bytes) else repr(row[0])
            raise InputError(
                f"{self.about}: no annotation is of an image that is listed: the first annotation's image is {said}, the first "
                f"image's id {image[0]!r}; want the same ids (a number and its text are two), or no annotations"
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()


_AT_HOME = "EXISTS (SELECT 1 FROM images WHERE id = rows.image)"
_FIRST = ("image FROM rows", "id FROM images")


def _bytes(value: Any) -> bytes:
    """Version 2, as later ones tell objects that are referred to twice from equal ones: equal values would differ."""
    return marshal.dumps(value, 2)


def _fit(number: Any) -> Id | None:
    """An image's id as SQLite takes it, whose integers have 64 bits; None if it is none.

    1.0 is 1: a tool that keeps ids in a column of floats writes them so, on one side of a file or on both.
    """
    if type(number) is float and number.is_integer():
        number = int(number)
    if isinstance(number, str):
        return number
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    return number if -(2**63) <= number < 2**63 else str(number)


class Index:
    """A finished index, opened for reading. ``digest`` is of all that its reader kept of the labels: any change shows in it."""

    def __init__(self, path: str | Path) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
        self._db.execute("PRAGMA cache_size=-4000")
        value, self.digest = self._db.execute("SELECT value, digest FROM header").fetchone()
        self.header: dict[str, Any] = marshal.loads(value)

    @property
    def images(self) -> int:
        """How many images there are."""
        return int(self._db.execute("SELECT count(*) FROM images").fetchone()[0])

    def orphan_annotations(self) -> dict[str, int]:
        """How many annotations belong to no image of the set: ``unknown_image``, or ``bad_image_id`` where what they name is of
        another kind (a text among numbers, nothing, a list), as no image of the whole set is called so."""
        kinds = "typeof(image) NOT IN (SELECT DISTINCT typeof(id) FROM images)"
        query = f"SELECT {kinds}, count(*) FROM rows WHERE NOT {_AT_HOME} GROUP BY 1"
        return {"bad_image_id" if bad else "unknown_image": n for bad, n in self._db.execute(query)}

    def parts(self, per: int) -> list[Part]:
        """The set cut into parts of ``per`` images, in order."""
        ids = self._db.execute("SELECT id FROM images ORDER BY id")
        starts: list[Id | None] = [row[0] for n, row in enumerate(ids) if n % per == 0]
        return [Part(start, stop) for start, stop in zip(starts, [*starts[1:], None])]  # type: ignore[arg-type]

    def images_of(self, part: Part) -> Iterator[tuple[Id, Any]]:
        """(id, image) of a part's images."""
        query, values = part.where("id")
        for number, image in self._db.execute(f"SELECT id, image FROM images WHERE {query} ORDER BY id", values):
            yield number, marshal.loads(image)

    def entries(self, part: Part) -> Iterator[Entry]:
        """The same with the annotations, which are in the order of the file."""
        query, values = part.where("image")
        rows: dict[Id, list[Any]] = {}
        # of a list that was cut to a split most annotations have no image here, and may be tens of millions
        query = f"SELECT image, row FROM rows WHERE {query} AND {_AT_HOME} ORDER BY image, rowid"
        for number, row in self._db.execute(query, values):
            rows.setdefault(number, []).append(marshal.loads(row))
        for number, image in self.images_of(part):
            yield Entry(number, image, rows.pop(number, []))

    def close(self) -> None:
        """Close the file."""
        self._db.close()
