"""Lazy reader of a regions file: columns are read on demand, and only selected rows are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import PseudoLabelConfig
from pipeline.data.name_list import NameList, footer_names
from pipeline.errors import InputError
from pipeline.io.paths import stem
from pipeline.io.tables import footer, open_parquet

BOX = ("x1", "y1", "x2", "y2")
STRINGS = ["key", "phrase"]


def as_numpy(column: pa.Array) -> np.ndarray:
    """(n,) values of a numeric array; nulls are nan. ``to_numpy`` alone would import pandas, which takes 0.4 s."""
    return np.asarray(column.to_numpy(zero_copy_only=False) if column.null_count else np.from_dlpack(column))


class RegionShard:
    """Regions of one shard.

    Attributes:
        total: number of rows of the file. size: number of rows selected by :meth:`restrict`.
        names: the class names that the regions are of; None: phrases of captions.

    Raises:
        InputError: no such file, not Parquet, the footer's names are invalid or, on access, a column
            is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.name = str(path), stem(path)
        self._file = open_parquet(path, STRINGS)
        self.total = self.size = int(self._file.metadata.num_rows)
        schema = self._file.schema_arrow
        self.columns: list[str] = schema.names
        self.footer = footer(schema)
        self.names: NameList | None = footer_names(self.footer, self.path)
        self._mask: pa.Array | None = None
        self._columns: dict[str, pa.Array] = {}
        self._numbers: dict[str, np.ndarray] = {}
        self._codes: dict[str, tuple[np.ndarray, pa.Array]] = {}
        self._images = 0

    @property
    def complete_above(self) -> float:
        """Score above which the shard has all regions that the teacher found; 0 if it does not say.

        pseudo-label's floor cuts before centerness, and a score with centerness c in 0..1 is
        sqrt(probability x c): all of at least the floor's root are stored, and some below.
        """
        floor = self._labelling.get("floor", 0.0)
        centerness = self.whole("centerness")
        return float(floor**0.5 if centerness.null_count < len(centerness) else floor)

    @property
    def phrase_nms(self) -> float:
        """IoU threshold of the NMS that pseudo-label applied among a phrase's boxes."""
        return float(self._labelling.get("nms_threshold", PseudoLabelConfig().nms_threshold))

    @property
    def _labelling(self) -> dict[str, Any]:
        """Settings of pseudo-label."""
        settings: dict[str, Any] = json.loads(self.footer.get("config", "{}"))
        return settings

    def restrict(self, selected: np.ndarray) -> None:
        """Select rows, once. ``selected``: (total,) bool."""
        assert self._mask is None
        if not selected.all():
            bits = pa.py_buffer(np.packbits(selected, bitorder="little"))
            self._mask = pa.Array.from_buffers(pa.bool_(), len(selected), [None, bits])  # pa.array imports pandas
            self.size = int(selected.sum())
            self._columns = {name: self._select(values) for name, values in self._columns.items()}
            self._numbers, self._codes = {}, {}

    def column(self, name: str) -> pa.Array:
        """(size,) Arrow array; strings are dictionary-encoded."""
        if name not in self._columns:
            self._columns[name] = self._select(self.whole(name))
        return self._columns[name]

    def numbers(self, name: str) -> np.ndarray:
        """(size,) values of a numeric column; nulls are nan."""
        if name not in self._numbers:
            self._numbers[name] = as_numpy(self.column(name))
        return self._numbers[name]

    def boxes(self) -> np.ndarray:
        """(size, 4) absolute xyxy in pixels, float64."""
        return np.stack([self.numbers(c) for c in BOX], 1).astype(np.float64)

    def keys(self) -> tuple[np.ndarray, pa.Array]:
        """(size,) codes of the images, and the keys that the codes index."""
        if "key" not in self._codes:
            whole = self.whole("key")
            present = np.bincount(as_numpy(whole.indices), minlength=len(whole.dictionary)) > 0
            self._images = int(present.sum())
            selected = self._columns.setdefault("key", self._select(whole))
            self._codes["key"] = as_numpy(selected.indices), selected.dictionary
        return self._codes["key"]

    @property
    def images(self) -> int:
        """Number of distinct images in the whole shard."""
        self.keys()
        return self._images

    def texts(self) -> tuple[np.ndarray, pa.Array]:
        """(size,) codes of the phrase texts in lower case, and the texts (not all of them occur).

        Of regions of class names, the names take the place of the phrases.
        """
        if "phrase" not in self._codes:
            column = self.column("phrase") if self.names is None else self.column("name").dictionary_encode()
            lower = pc.utf8_lower(column.dictionary).dictionary_encode()
            codes = as_numpy(column.indices)
            self._codes["phrase"] = (as_numpy(lower.indices)[codes] if len(codes) else codes), lower.dictionary
        return self._codes["phrase"]

    def phrase_ids(self) -> np.ndarray:
        """(size,) integers, one for each phrase of a caption, or for each class name of an image."""
        if self.names is None:
            return self.numbers("phrase_row")
        codes, texts = self.texts()
        return np.asarray(self.keys()[0].astype(np.int64) * len(texts) + codes)

    def whole(self, name: str) -> pa.Array:
        """(total,) Arrow array of a column, without row selection."""
        if name not in self.columns:
            raise InputError(f"{self.path}: has no column {name}, only {', '.join(self.columns)}")
        try:
            column = self._file.read(columns=[name], use_threads=False)[name]
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{self.path}: column {name} cannot be read ({error})") from None
        if column.num_chunks == 1:
            return column.chunk(0)
        return (column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column).combine_chunks()

    def _select(self, values: pa.Array) -> pa.Array:
        return values if self._mask is None else values.filter(self._mask)

    def table(self, selected: np.ndarray, schema: pa.Schema) -> pa.Table:
        """Columns of ``schema`` for the rows ``selected`` (size,); missing nullable ones are null.

        Frees the columns, so it must be the last access.
        """
        mask = None if selected.all() else pa.array(selected)
        columns = []
        for field in schema:
            if field.name not in self.columns and field.nullable:
                columns.append(pa.nulls(int(selected.sum()), field.type))
            else:
                values = self._columns.pop(field.name, None)
                values = self._select(self.whole(field.name)) if values is None else values
                columns.append(values if mask is None else values.filter(mask))
        return pa.table(columns, names=schema.names)
