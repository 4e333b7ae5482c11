"""Deterministic Parquet writer, and readers with named errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.io.atomic import OutputFile, atomic_file
from pipeline.io.files import read_bytes
from pipeline.io.paths import is_url


def required_columns(kind: pa.DataType, *names: str) -> list[pa.Field]:
    """Fields of one type without nulls."""
    return [pa.field(name, kind, nullable=False) for name in names]


def write_table(path: str | Path, table: pa.Table, schema: pa.Schema, footer: Mapping[str, str]) -> OutputFile:
    """Write ``table`` atomically as zstd Parquet; ``footer`` becomes the file's metadata.

    Raises:
        ValueError: the table's columns differ from those of ``schema``.
    """
    table = table.cast(schema).replace_schema_metadata({k: str(v) for k, v in sorted(footer.items())})
    with atomic_file(path) as file:
        floats = [f.name for f in schema if pa.types.is_floating(f.type)]  # mostly distinct: a dictionary does not help
        others = [name for name in schema.names if name not in floats]
        pq.write_table(
            table,
            pa.PythonFile(file, mode="w"),
            compression="zstd",
            use_dictionary=others,
            use_byte_stream_split=floats,
        )
        return file.summary()


def open_parquet(path: str | Path, strings: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a Parquet file, a remote one by downloading it; ``strings``: columns to read as dictionaries.

    Raises:
        InputError: no such file, or not Parquet.
    """
    with _named_errors(path):
        if not is_url(path):
            return pq.ParquetFile(path, read_dictionary=strings)
        data = read_bytes(path)
        if data is None:
            raise FileNotFoundError(path)
        return pq.ParquetFile(pa.BufferReader(data), read_dictionary=strings)


def read_table(
    path: str | Path,
    columns: pa.Schema | Sequence[str],
    optional: Sequence[str] | None = (),
    strings: Sequence[str] = (),
) -> pa.Table:
    """Read these columns of a Parquet file, in this order; ``footer(table.schema)`` is its footer.

    Args:
        optional: further columns, read if the file has them; None: all that it has.
        strings: columns to read as dictionaries.

    Raises:
        InputError: no such file, not Parquet, or a column is missing.
    """
    wanted = list(columns.names if isinstance(columns, pa.Schema) else columns)
    with _named_errors(path):
        file = open_parquet(path, strings)
        names = file.schema_arrow.names
        missing = [name for name in wanted if name not in names]
        if missing:
            raise InputError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(names)}")
        others = [name for name in names if name not in wanted]
        wanted += others if optional is None else [name for name in optional if name in others]
        return file.read(columns=wanted).select(wanted)


def footer(schema: pa.Schema) -> dict[str, str]:
    """Metadata that :func:`write_table` stored in the file that ``schema`` was read from."""
    return {k.decode(): v.decode() for k, v in (schema.metadata or {}).items() if not k.startswith(b"ARROW:")}


@contextmanager
def _named_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a Parquet file ({error})") from None
