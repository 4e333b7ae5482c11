"""On-disk index of a set's images and their annotations, so that ingest's memory use does not grow
with the set.

An annotation file may have gigabytes, in any order. It is streamed once into a temporary SQLite
file, from which each shard, in any process, reads the rows of its own images.
"""

from __future__ import annotations

import hashlib
import marshal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.keys import image_key
from pipeline.errors import InputError
from pipeline.readers.bad_rows import BadRows

_BATCH = 2000
Id = int | str


class Entry(NamedTuple):
    """An image: its id, and the data that ``fill`` stored of it and of its annotations. ``twins``:
    entries of the same file.
    """

    id: Id
    image: Any
    rows: list[Any]
    twins: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class IdRange:
    """Images with ids from ``start`` to ``stop``, exclusive; None: to the end."""

    start: Id
    stop: Id | None

    def where(self, column: str) -> tuple[str, tuple[Id, ...]]:
        """SQL condition and its parameters."""
        if self.stop is None:
            return f"{column} >= ?", (self.start,)
        return f"{column} >= ? AND {column} < ?", (self.start, self.stop)


class IndexWriter:
    """Writes an index. Rows are numbers, strings, lists and dicts.

    Args:
        about: name of the set in error messages.
        identity: file of an image -> a text that is the same for all names of the file.

    ``bad`` counts the rows that cannot be read.

    Rows are serialised with marshal, ten times faster than JSON, as the same program on the same
    machine reads them.
    """

    def __init__(self, path: str | Path, about: str, identity: Callable[[str], str] = str) -> None:
        self.about, self._identity, self.bad = about, identity, BadRows()
        self._db = sqlite3.connect(path, isolation_level=None)
        # the file is discarded after a crash, so it needs no journal
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-4000"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute("CREATE TABLE images (id, image BLOB, key TEXT, first)")  # first: id, of a twin
        self._db.execute("CREATE TABLE rows (image, row BLOB)")
        self._db.execute("CREATE TABLE files (image, file TEXT, identity TEXT)")
        self._db.execute("CREATE TABLE header (value BLOB, digest TEXT)")
        self._files: list[tuple[Id, str, str]] = []
        self._images: list[tuple[Id, bytes, str | None]] = []
        self._rows: list[tuple[Id | bytes, bytes]] = []
        self._key_kinds: set[type] = set()
        self._hash = hashlib.sha256()
        self._db.execute("BEGIN")

    def image(self, number: Id, image: Any, key: str | None = None, *, file: str | None = None) -> None:
        """Add an image. Images are ordered by id.

        Args:
            key: the sample key if stated; by default made of the id.
            file: the image's file, if the labels of further images of the same file are to be merged
                with this one's.

        Raises:
            InputError: the id is not an integer or string.
        """
        if (image_id := _sqlite_id(number)) is None:
            raise InputError(f"{self.about}: image id {number!r}: want an integer or a string")
        self._images.append((image_id, _bytes(image), key))
        if file is not None:
            self._files.append((image_id, file, self._identity(file)))
        self._key_kinds.add(type(image_id) if key is None else type(None))
        if len(self._images) >= _BATCH:
            self._flush()

    def row(self, image: Any, row: Any) -> None:
        """Add an annotation of an image that may be added later or never."""
        image_id = _sqlite_id(image)
        # an invalid id is stored as a blob, which equals no image's id
        self._rows.append((repr(image).encode(errors="replace") if image_id is None else image_id, _bytes(row)))
        if len(self._rows) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        self._hash.update(_bytes([self._images, self._rows]))
        self._db.executemany("INSERT INTO images VALUES (?, ?, ?, NULL)", self._images)
        self._db.executemany("INSERT INTO rows VALUES (?, ?)", self._rows)
        self._db.executemany("INSERT INTO files VALUES (?, ?, ?)", self._files)
        self._files.clear()
        self._images.clear()
        self._rows.clear()

    def images_of_rows(self) -> None:
        """Add an image for every id that has rows so far, for formats without a list of images."""
        self._flush()
        self._db.execute("INSERT INTO images SELECT DISTINCT image, ?, NULL, NULL FROM rows", (_bytes(None),))

    def forget_orphan_annotations(self) -> None:
        """Remove rows that refer to missing images."""
        self._flush()
        self._db.execute("DELETE FROM rows WHERE image NOT IN (SELECT id FROM images)")

    def finish(self, header: Mapping[str, Any]) -> None:
        """Store the header and build the SQL indexes.

        If the header has ``first_counts``, only the first of images with equal ids is kept, and
        only the first row of an image; ``duplicates`` in the stored header is the number of samples
        removed. Of images with the same ``file`` the others become twins of the first; the stored
        header then has their number, ``twins``.

        Raises:
            InputError: two images have the same id (without ``first_counts``) or the same key.
        """
        self._flush()
        header = dict(header)
        if header.pop("first_counts", False):
            images = "DELETE FROM images WHERE rowid NOT IN (SELECT min(rowid) FROM images GROUP BY id)"
            rows = """DELETE FROM rows WHERE rowid NOT IN (SELECT min(rowid) FROM rows GROUP BY image)
                AND image IN (SELECT id FROM images)"""
            header["duplicates"] = max(self._db.execute(query).rowcount for query in (images, rows))
        try:
            self._db.execute("CREATE UNIQUE INDEX image_ids ON images (id)")
        except sqlite3.IntegrityError:
            query = "SELECT id FROM images GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 1"
            (repeated,) = self._db.execute(query).fetchone()
            raise InputError(f"{self.about}: duplicate image id {repeated}") from None
        self._find_twins(header)
        self._refuse_duplicate_keys()
        self._hash.update(_bytes(header))
        self._db.execute("INSERT INTO header VALUES (?, ?)", (_bytes(header), self._hash.hexdigest()))
        self._db.execute("CREATE INDEX rows_of ON rows (image)")
        self._db.execute("COMMIT")

    def _find_twins(self, header: dict[str, Any]) -> None:
        twins = """SELECT f.image, g.first, f.file FROM files f JOIN (SELECT identity, min(image) AS first FROM files
            GROUP BY identity HAVING count(DISTINCT image) > 1) g USING (identity) WHERE f.image != g.first"""
        if (found := self._db.execute(f"{twins} LIMIT 1").fetchone()) is not None:
            other, first, file = found
            query = f"UPDATE images SET first = t.first FROM ({twins}) t WHERE images.id = t.image"
            n = header["twins"] = self._db.execute(query).rowcount
            note = f"{n} images are listed twice, such as {file} (the ids {first!r} and {other!r}): the labels of each "
            header["notes"] = [*header.get("notes", ()), note + "are merged"]
            self._db.execute("CREATE INDEX twins_of ON images (first) WHERE first IS NOT NULL")

    def _refuse_duplicate_keys(self) -> None:
        """Check that keys are unique, unless all are made of ids of one type."""
        if len(self._key_kinds) < 2 and type(None) not in self._key_kinds:
            return
        self._db.create_function("key_of", 1, image_key, deterministic=True)
        query = """SELECT named, min(id), max(id) FROM (SELECT coalesce(key, key_of(id)) AS named, id FROM images
            WHERE first IS NULL) GROUP BY named HAVING count(*) > 1 ORDER BY named LIMIT 1"""
        if (duplicate := self._db.execute(query).fetchone()) is not None:
            key, one, other = duplicate
            raise InputError(f"{self.about}: two images have the key {key!r}: those of the ids {one!r} and {other!r}")

    def refuse_unknown_ids(self) -> None:
        """Raise if no annotation refers to a listed image: the two files probably use different
        ids.

        Some orphan annotations are normal: image lists of a split often come with the annotations
        of the whole set.

        Raises:
            InputError: there are annotations and images, and no annotation refers to an image.
        """
        if self._db.execute(f"SELECT 1 FROM rows WHERE {_HAS_IMAGE} LIMIT 1").fetchone() is not None:
            return
        first = ("image FROM rows", "id FROM images")
        row, image = (self._db.execute(f"SELECT {column} ORDER BY rowid LIMIT 1").fetchone() for column in first)
        if row is not None and image is not None:
            row_id = row[0].decode() if isinstance(row[0], bytes) else repr(row[0])
            raise InputError(
                f"{self.about}: no annotation refers to a listed image: the first annotation's image is {row_id}, the "
                f"first image's id {image[0]!r}; want the same ids (1 and '1' differ), or no annotations"
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()


_HAS_IMAGE = "EXISTS (SELECT 1 FROM images WHERE id = rows.image)"


def _bytes(value: Any) -> bytes:
    """Serialise with marshal's version 2; in later versions equal values may differ."""
    return marshal.dumps(value, 2)


def _sqlite_id(number: Any) -> Id | None:
    """Image id as SQLite stores it, whose integers have 64 bits; None if invalid.

    1.0 is 1: tools that keep ids in a float column write them so, in images, annotations or both.
    """
    if type(number) is float and number.is_integer():
        number = int(number)
    if isinstance(number, str):
        return number
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    return number if -(2**63) <= number < 2**63 else str(number)


class IndexReader:
    """A finished index. ``digest``: of all stored data, so it changes with the annotations."""

    def __init__(self, path: str | Path) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
        self._db.execute("PRAGMA cache_size=-4000")
        value, self.digest = self._db.execute("SELECT value, digest FROM header").fetchone()
        self.header: dict[str, Any] = marshal.loads(value)

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self._db.execute("SELECT count(*) FROM images WHERE first IS NULL").fetchone()[0])

    def orphan_annotations(self) -> dict[str, int]:
        """Number of annotations that refer to no image, by reason.

        ``bad_image_id``: the id's type is that of no image (a string among integers, null, a list);
        ``unknown_image``: the others.
        """
        wrong_type = "typeof(image) NOT IN (SELECT DISTINCT typeof(id) FROM images)"
        query = f"SELECT {wrong_type}, count(*) FROM rows WHERE NOT {_HAS_IMAGE} GROUP BY 1"
        return {"bad_image_id" if bad else "unknown_image": n for bad, n in self._db.execute(query)}

    def ranges(self, size: int) -> list[IdRange]:
        """Id ranges of ``size`` images each, in order; the last may be smaller."""
        ids = self._db.execute("SELECT id FROM images WHERE first IS NULL ORDER BY id")
        starts: list[Id] = [row[0] for n, row in enumerate(ids) if n % size == 0]
        return [IdRange(start, stop) for start, stop in zip_longest(starts, starts[1:])]

    def images_of(self, ids: IdRange) -> Iterator[tuple[Id, Any]]:
        """(id, image) of the images in a range."""
        query, values = ids.where("id")
        for number, image in self._db.execute(
            f"SELECT id, image FROM images WHERE first IS NULL AND {query} ORDER BY id", values
        ):
            yield number, marshal.loads(image)

    def entries(self, ids: IdRange) -> Iterator[Entry]:
        """Entries of the images in a range, each with its annotations in the order of the file."""
        query, values = ids.where("image")
        rows: dict[Id, list[Any]] = {}
        # tens of millions of annotations may refer to images outside the split
        query = f"SELECT image, row FROM rows WHERE {query} AND {_HAS_IMAGE} ORDER BY image, rowid"
        for number, row in self._db.execute(query, values):
            rows.setdefault(number, []).append(marshal.loads(row))
        twins = self._twins(ids) if self.header.get("twins") else {}
        for number, image in self.images_of(ids):
            yield Entry(number, image, rows.pop(number, []), tuple(twins.get(number, ())))

    def _twins(self, ids: IdRange) -> dict[Id, list[Entry]]:
        """Further entries of the files of a range's images, by the images' ids."""
        query, values = ids.where("first")
        twins: dict[Id, list[Entry]] = {}
        for number, image, first in self._db.execute(
            f"SELECT id, image, first FROM images WHERE {query} ORDER BY id", values
        ):
            rows = self._db.execute("SELECT row FROM rows WHERE image = ? ORDER BY rowid", (number,))
            entry = Entry(number, marshal.loads(image), [marshal.loads(row) for (row,) in rows])
            twins.setdefault(first, []).append(entry)
        return twins

    def close(self) -> None:
        """Close the file."""
        self._db.close()
