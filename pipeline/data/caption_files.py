"""Captions, or class names, of a crawl's images from a file: Parquet, CSV or JSON lines."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.io.file_cache import FileVersion, file_version
from pipeline.io.files import open_file
from pipeline.io.hashing import digest_json
from pipeline.io.samples import joined_captions, repeated_names
from pipeline.io.tables import open_parquet
from pipeline.io.tars import TarSample
from pipeline.io.virtual_shards import encoded

KEYS = ("key", "__key__", "file_name", "filename", "path", "image", "id")
CAPTIONS = ("caption", "captions", "text")
NAMES = ("names", "name", "classes", "labels", "tags")
"""Columns in which keys, captions and class names are looked for, in this order."""
FORMATS = (".parquet", ".csv", ".jsonl")
_LINE = 64 << 20
"""Bytes of the longest line of a CSV or JSON file, and of the part of it that is parsed at a time."""


@dataclass(frozen=True)
class CaptionFile:
    """A file of captions, or of class names, and its columns of keys and of these (texts, or lists of texts)."""

    path: str
    key: str
    column: str

    def find(self, names: Iterable[str]) -> dict[str, str]:
        """Captions of those of the names that are in the file; several of one name are joined to sentences."""
        return {key: joined_captions(captions) for key, captions in self.texts(names).items()}

    def texts(self, names: Iterable[str]) -> dict[str, list[str | None]]:
        """Texts of those of the names that are in the file."""
        rows = self._table()
        wanted = pa.array([name for name in names if _is_text(name)], pa.string())
        found: dict[str, list[str | None]] = {}
        rows = rows.filter(pc.is_in(rows["key"], value_set=wanted))
        for key, captions in zip(rows["key"].to_pylist(), rows["caption"].to_pylist(), strict=True):
            found.setdefault(key, []).extend(captions if isinstance(captions, list) else [captions])
        return found

    def distinct(self) -> Iterator[str | None]:
        """The column of texts, each distinct text of it once, or each distinct text of its lists, as they come."""
        for chunk in self._table()["caption"].chunks:
            yield from (pc.list_flatten(chunk) if self.lists else chunk).unique().to_pylist()

    def found_by(self, shard: str) -> str:
        """Digest of the columns, and of the file names that a shard's images share with others and are not found by."""
        return digest_json([self.key, self.column, sorted(repeated_names(shard) or ())])

    @property
    def lists(self) -> bool:
        """Whether the texts are lists of texts."""
        return bool(pa.types.is_list(self._table().schema.field("caption").type))

    def first(self) -> str | None:
        """The first key; None: it has none."""
        return next(iter(self._table()["key"][:1].to_pylist()), None)

    def _table(self) -> pa.Table:
        return _read(self.path, self.key, self.column, file_version(self.path))


def open_captions(path: str, key: str | None, column: str | None) -> CaptionFile:
    """A file of captions; columns that are not given are those of KEYS and CAPTIONS.

    Raises:
        InputError: no such file, another format, or no such column.
    """
    if not path.endswith(FORMATS):
        raise InputError(f"{path}: want captions as {', '.join(FORMATS)}")
    with _named_errors(path):
        names = _columns(path)
    return CaptionFile(
        path, _chosen(path, names, key, KEYS, ", or --caption-key"),
        _chosen(path, names, column, CAPTIONS, ", or --caption-column"),
    )  # fmt: skip


def open_names(path: str) -> CaptionFile:
    """A file of class names of images, with columns of KEYS and NAMES.

    Raises:
        InputError: no such file, another format, or no such column.
    """
    with _named_errors(path):
        columns = _columns(path)
    return CaptionFile(path, _chosen(path, columns, None, KEYS), _chosen(path, columns, None, NAMES))


def _chosen(path: str, columns: Sequence[str], given: str | None, known: Sequence[str], option: str = "") -> str:
    name = given if given is not None else next((n for n in known if n in columns), None)
    if name is None or name not in columns:
        wanted = f"the column {given}" if given is not None else f"a column {', '.join(known)}{option}"
        raise InputError(f"{path}: found columns {', '.join(columns)}; want {wanted}")
    return name


def names_of(sample: TarSample, extension: str, repeated: frozenset[str] | None) -> list[str]:
    """Names by which a file of captions may call a sample, the surest first.

    Those are its key, KEY.EXTENSION and, of a loose image, its path with and without the extension (but not
    without it where images differ by it alone), and the file's name unless it is one of ``repeated``.
    """
    if not sample.path:
        return [sample.key, f"{sample.key}.{extension}"]
    base, name = sample.path.rpartition(".")[0], posixpath.basename(sample.path)
    names = [sample.key, sample.path]
    if encoded(base) == sample.key:
        names.append(base)
    return names if repeated is None or name in repeated else [*names, name]


@lru_cache(maxsize=2)
def _read(path: str, key: str, column: str, version: FileVersion | None) -> pa.Table:
    """Table of ``key`` and ``caption``, held in memory."""
    with _named_errors(path):
        table = _table_of(path, key, column)
        captions = table[column].type
        if pa.types.is_list(captions) or pa.types.is_large_list(captions):
            kind: pa.DataType = pa.list_(pa.large_string())
        else:
            kind = pa.large_string()
        return pa.table({"key": table[key].cast(pa.string()), "caption": table[column].cast(kind)})


def _table_of(path: str, key: str, column: str) -> pa.Table:
    from pyarrow import csv
    from pyarrow import json as json_lines

    if path.endswith(".parquet"):
        return open_parquet(path).read(columns=[key, column])
    with open_file(path) as file:
        if path.endswith(".csv"):
            types = {key: pa.string(), column: pa.string()}
            return csv.read_csv(
                file, csv.ReadOptions(block_size=_LINE), csv.ParseOptions(newlines_in_values=True),
                csv.ConvertOptions(include_columns=[key, column], column_types=types),
            )  # fmt: skip
        several = isinstance(_first_line(path).get(column), list)
        schema = pa.schema({key: pa.string(), column: pa.list_(pa.string()) if several else pa.string()})
        parse = json_lines.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        return json_lines.read_json(file, json_lines.ReadOptions(block_size=_LINE), parse)


def _columns(path: str) -> Sequence[str]:
    if path.endswith(".parquet"):
        return list(open_parquet(path).schema_arrow.names)
    if path.endswith(".jsonl"):
        return list(_first_line(path))
    from pyarrow import csv

    with open_file(path) as file:
        reader = csv.open_csv(file, csv.ReadOptions(block_size=_LINE), csv.ParseOptions(newlines_in_values=True))
        return list(reader.schema.names)


def _first_line(path: str) -> dict[str, object]:
    with open_file(path) as file:
        row = json.loads(file.readline())
    if not isinstance(row, dict):
        raise ValueError(f"line 1 is no object but {type(row).__name__}")
    return row


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8; names of files may be other bytes."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (pa.ArrowException, ValueError) as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"{path}: found rows that cannot be read ({line}); want a Parquet, CSV or JSON-lines file with a column "
            "of keys and one of texts or lists of texts"
        ) from None
