"""A regions file whose columns are read when a rule asks for them, and kept only for the rows still
in question.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.io.paths import stem
from pipeline.io.tables import footer, open_parquet

BOX = ("x1", "y1", "x2", "y2")
STRINGS = ["key", "phrase"]


class RegionShard:
    """The regions of one shard. Rows that :meth:`restrict` leaves out are counted in ``total`` and
    read no further.

    Raises:
        InputError: no such file, not Parquet, or (when it is asked for) a column that is not there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.name = str(path), stem(path)
        self._file = open_parquet(path, STRINGS)
        self.total = self.size = int(self._file.metadata.num_rows)
        schema = self._file.schema_arrow
        self.columns: list[str] = schema.names
        self.footer = footer(schema)
        self._mask: pa.Array | None = None
        self._columns: dict[str, pa.Array] = {}
        self._numbers: dict[str, np.ndarray] = {}
        self._codes: dict[str, tuple[np.ndarray, pa.Array]] = {}
        self._images = 0

    def restrict(self, stays: np.ndarray) -> None:
        """Read only these rows from now on. ``stays`` (total,) of bool; once, before the columns it
        is to spare.
        """
        assert self._mask is None
        if not stays.all():
            self._mask = pa.array(stays)
            self.size = int(stays.sum())
            self._columns = {name: self._spare(values) for name, values in self._columns.items()}
            self._numbers, self._codes = {}, {}

    def column(self, name: str) -> pa.Array:
        """(size,) of Arrow values; strings as dictionaries."""
        if name not in self._columns:
            self._columns[name] = self._spare(self.whole(name))
        return self._columns[name]

    def numbers(self, name: str) -> np.ndarray:
        """(size,) of a numeric column; nulls are nan."""
        if name not in self._numbers:
            self._numbers[name] = self.column(name).to_numpy(zero_copy_only=False)
        return self._numbers[name]

    def boxes(self) -> np.ndarray:
        """(size, 4) absolute xyxy in pixels, float64."""
        return np.stack([self.numbers(c) for c in BOX], 1).astype(np.float64)

    def keys(self) -> tuple[np.ndarray, pa.Array]:
        """(size,) codes of the images and the keys they stand for."""
        if "key" not in self._codes:
            whole = self.whole("key")
            present = np.bincount(whole.indices.to_numpy(), minlength=len(whole.dictionary)) > 0
            self._images = int(present.sum())
            mine = self._columns.setdefault("key", self._spare(whole))
            self._codes["key"] = mine.indices.to_numpy(), mine.dictionary
        return self._codes["key"]

    @property
    def images(self) -> int:
        """Distinct images of the whole shard."""
        self.keys()
        return self._images

    def texts(self) -> tuple[np.ndarray, pa.Array]:
        """(size,) codes of the phrase texts in lower case and the texts they stand for (not all of
        them occur).
        """
        if "phrase" not in self._codes:
            self._codes["phrase"] = lower_case_codes(self.column("phrase"))
        return self._codes["phrase"]

    def whole(self, name: str) -> pa.Array:
        """(total,) of a column, whatever the rows in question."""
        if name not in self.columns:
            raise InputError(f"{self.path}: has no column {name}, only {', '.join(self.columns)}")
        try:
            column = self._file.read(columns=[name], use_threads=False)[name]
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{self.path}: column {name} cannot be read ({error})") from None
        if column.num_chunks == 1:
            return column.chunk(0)
        return (column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column).combine_chunks()

    def _spare(self, values: pa.Array) -> pa.Array:
        return values if self._mask is None else values.filter(self._mask)

    def table(self, stays: np.ndarray, schema: pa.Schema) -> pa.Table:
        """The columns of ``schema`` for the rows where ``stays`` (size,); one that may be null and
        is not there is null.
        """
        mask = None if stays.all() else pa.array(stays)
        columns = []
        for field in schema:
            if field.name not in self.columns and field.nullable:
                columns.append(pa.nulls(int(stays.sum()), field.type))
            else:
                values = self._columns.pop(field.name, None)  # asked for the last time
                values = self._spare(self.whole(field.name)) if values is None else values
                columns.append(values if mask is None else values.filter(mask))
        return pa.table(columns, names=schema.names)


def lower_case_codes(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Codes of a dictionary column's texts in lower case, and the texts."""
    low = pc.utf8_lower(column.dictionary).dictionary_encode()
    codes = column.indices.to_numpy()
    return (low.indices.to_numpy()[codes] if len(codes) else codes), low.dictionary
