"""Parquet tables of the label store: one writer, one reader, always the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.io.atomic import OutputFile, atomic_file
from pipeline.io.files import read_bytes
from pipeline.io.paths import is_url


def write_table(path: str | Path, table: pa.Table, schema: pa.Schema, footer: Mapping[str, str]) -> OutputFile:
    """Write ``table`` as zstd Parquet with dictionary-encoded strings; ``footer`` goes into the file's metadata.

    Raises:
        ValueError: the table's columns are not those of ``schema``.
    """
    table = table.cast(schema).replace_schema_metadata({k: str(v) for k, v in sorted(footer.items())})
    with atomic_file(path) as file:
        floats = [f.name for f in schema if pa.types.is_floating(f.type)]  # few of them are alike: no dictionary
        others = [name for name in schema.names if name not in floats]
        pq.write_table(
            table,
            pa.PythonFile(file, mode="w"),
            compression="zstd",
            use_dictionary=others,
            use_byte_stream_split=floats,
        )
        return file.summary()


def read_table(path: str | Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a table that :func:`write_table` wrote; the footer is in ``table.schema.metadata``.

    Columns that the file has beside ``schema``'s (a later stage may have added some) are left unread.

    Raises:
        InputError: no such file, not Parquet, or a column of ``schema`` is missing.
    """
    expected = columns or schema.names
    with _named_errors(path):
        source = _source(path)
        names = pq.read_schema(source).names
        missing = [name for name in expected if name not in names]
        if missing:
            raise InputError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(names)}")
        return pq.read_table(source, columns=expected).select(expected)


def column_names(path: str | Path) -> list[str]:
    """What columns a table has.

    Raises:
        InputError: no such file, or not Parquet.
    """
    with _named_errors(path):
        return pq.read_schema(_source(path)).names


@contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a Parquet file ({error})") from None


def footer(path: str | Path) -> dict[str, str]:
    """The metadata that :func:`write_table` put into the file."""
    found = pq.read_schema(_source(path)).metadata or {}
    return {k.decode(): v.decode() for k, v in found.items() if not k.startswith(b"ARROW:")}


def _source(path: str | Path) -> Any:
    """What pyarrow reads: a local path, or the whole of a remote file (they are small)."""
    if not is_url(path):
        return path
    data = read_bytes(path)
    if data is None:
        raise FileNotFoundError(path)
    return pa.BufferReader(data)
