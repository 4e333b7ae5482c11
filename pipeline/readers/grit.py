"""GRIT (Kosmos-2, arXiv 2306.14824): captions whose noun chunks or referring expressions have boxes
predicted by GLIP.

Input is img2dataset's output: shards whose ``KEY.json`` has GRIT's columns, or ``.parquet`` tables
(or JSON Lines with the same fields) and a folder of ``00000/KEY.jpg``, whatever the widths of the
numbers and the encoded format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from posixpath import basename
from typing import Any

from pipeline.data.crawl import described
from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.resizing import original_size
from pipeline.errors import InputError
from pipeline.io.files import file_size
from pipeline.io.paths import is_url, join, stem
from pipeline.io.shard_patterns import expand_shards, is_shard, shards_in
from pipeline.io.tars import TarProblems, read_tar
from pipeline.readers.base import Format, Header, ImageLocation, LabelCollector, LabelledImage, SetFiles
from pipeline.readers.boxes import clipped, is_number
from pipeline.readers.fields import option_flag
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.json_stream import stream_lines
from pipeline.readers.sniff import describe_row, wrong_format

WANTED = "GRIT as img2dataset leaves it (rows with `key`, `caption` and `noun_chunks` or `ref_exps`)"
ANNOTATOR = "grit"
_TRIES = 50
"""Rows whose image is searched for, to know the layout of the others."""
_COLUMNS = ("key", "caption", "noun_chunks", "ref_exps", "status", "original_width", "original_height")
_Where = tuple[str, str, int, int]
"""(key, shard, offset, bytes) of an image."""


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the shards or tables. Invalid rows are skipped and counted as ``bad_labels``, damage of
    tars by its reason; the set is refused if its first rows are all invalid.
    """
    column = "ref_exps" if option_flag(files, "expressions") else "noun_chunks"
    bad = index.bad
    for path in _paths(files.annotations):
        layout = _Layout(path, files.image_folders)
        for row, where in _rows(path, bad.samples):
            with bad.row(hide=path.removesuffix(basename(path))):  # the report has no folders
                index.image(*_entry(path, row, where, column, layout))
    bad.check()
    if bad.samples.notes and not bad.good:
        raise InputError(f"{files.annotations}: want {WANTED}; found no such sample ({bad.samples.notes[0]})")
    return {"first_counts": True, "lost_samples": bad.samples.counts, "notes": bad.samples.notes}


def _entry(
    path: str, row: Any, where: _Where | None, column: str, layout: _Layout
) -> tuple[str, tuple[Any, str, list[list[Any]], tuple[int, int] | None]]:
    """(key, (location, caption, chunks, original size)) of a row; raises InputError if it is none of GRIT's."""
    if isinstance(row, InputError):  # a line that is not JSON
        raise row
    name = f"{path}: {where[0]}.json" if where else path
    if not isinstance(row, dict) or not isinstance(row.get("caption"), str) or column not in row:
        raise InputError(f"{name}: want {WANTED}; found {describe_row(row)}")
    if where is None:
        key = str(row.get("key", ""))
        if not key:
            raise InputError(f"{path}: want {WANTED}; found the key {key!r}")
        location: tuple[str, int, int | None] = (layout.file(key), 0, None)
    else:
        key, location = where[0], where[1:]
    chunks = row[column]
    try:
        chunks = json.loads(chunks) if isinstance(chunks, str) else chunks
        return key, (location, row["caption"], [list(chunk) for chunk in chunks], original_size(row))
    except (ValueError, TypeError):
        raise InputError(
            f"{name}: {key}: want a list of chunks in `{column}`; found {str(row[column])[:40]!r}"
        ) from None


class _Layout:
    """Image files of a table's keys, as img2dataset's layout ``files`` has them: ``00000/KEY.jpg``
    beside ``00000.parquet``.

    A key is the shard's number and the image's, of a width that depends on the settings, as does the
    extension; the first image that is found below the image folders shows both.
    """

    def __init__(self, table: str, folders: tuple[str, ...]) -> None:
        self._name, self._folders = stem(table), folders
        self._found: tuple[int | None, str] | None = None
        self._tries = _TRIES if folders else 0

    def file(self, key: str) -> str:
        """Path of a key's image, relative to an image folder."""
        if self._found is None and self._tries:
            self._tries -= 1
            self._found = self._find(key)
        digits, extension = self._found or (None if key.startswith(self._name) else max(1, len(key) - 4), "jpg")
        return self._path(key, digits, extension)

    def _path(self, key: str, digits: int | None, extension: str) -> str:
        folder = self._name if digits is None else key[:digits]
        return f"{folder}/{key}.{extension}" if folder else f"{key}.{extension}"

    def _find(self, key: str) -> tuple[int | None, str] | None:
        """(number of a key's characters that name its folder, None: the table's name; extension)."""
        for folder in self._folders:
            # not all possible names are requested from a store
            widths = [None, len(key) - 4] if is_url(folder) else [None, *range(len(key) - 1, -1, -1)]
            for extension in IMAGE_EXTENSIONS[:4]:
                for digits in widths:
                    if file_size(join(folder, self._path(key, digits, extension))) is not None:
                        return digits, extension
        return None


def _paths(pattern: str) -> list[str]:
    for suffix in (".parquet", ".jsonl", ".json"):
        if pattern.endswith(suffix):
            return expand_shards(pattern, suffix=suffix)
    if not is_url(pattern) and Path(pattern).is_dir() and not shards_in(pattern):
        raise wrong_format(pattern, WANTED)
    return expand_shards(pattern, suffix=".tar")


def _rows(path: str, problems: TarProblems) -> Iterator[tuple[Any, _Where | None]]:
    """(row, its image's location if it is in the shard)."""
    if is_shard(basename(path)):
        for sample in read_tar(path, problems):
            extension = next((e for e in IMAGE_EXTENSIONS if e in sample.files), None)
            if extension is None or "json" not in sample.files:
                missing = "image" if extension is None else "json"
                problems.add(f"no_{missing}", f"{basename(path)}: {sample.key}: no {missing}, but {described(sample)}")
                continue
            try:
                row = json.loads(sample.files["json"])
            except ValueError:
                row = "no JSON"
            if extension not in sample.offsets:
                raise InputError(f"{path}: found a compressed tar, of which no part can be read; want it unpacked")
            yield row, (sample.key, path, sample.offsets[extension], len(sample.files[extension]))
    elif path.endswith(".parquet"):
        from pipeline.io.tables import open_parquet  # imports pyarrow

        file = open_parquet(path)
        columns = [n for n in _COLUMNS if n in file.schema_arrow.names]
        for batch in file.iter_batches(1000, columns=columns):
            for row in batch.to_pylist():
                if row.pop("status", "success") == "success":
                    yield row, None
    else:
        for _, row in stream_lines(path, WANTED):
            yield row, None


def location(image_id: Any, image: Any) -> ImageLocation:
    file, offset, size = image[0]
    return ImageLocation(file, offset=offset, size=size, absolute=size is not None)


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry. Chunks are [start, end, x1, y1, x2, y2, score] with relative boxes."""
    _, caption, chunks, original = entry.image
    labels = LabelCollector()
    for chunk in chunks:
        start, end = map(int, chunk[:2]) if len(chunk) > 1 and all(map(is_number, chunk[:2])) else (0, 0)
        inside = 0 <= start < end <= len(caption)
        box, score = None, None
        if len(chunk) != 7 or not all(map(is_number, chunk)):
            labels.lose("bad_box", f"{chunk}; want start, end, x1, y1, x2, y2, score")
        elif not inside:
            labels.lose("span_outside_caption", f"{chunk[:2]} of {len(caption)} characters")
        else:
            box, score = clipped(tuple(chunk[2:6]), (1, 1), labels.lost), float(chunk[6])
        if inside:
            labels.add(box, caption[start:end], ((start, end),), score=score, annotator=ANNOTATOR)
    size = original and tuple(original)
    return labels.image(entry, location=location, caption=caption, relative=True, crawled=True, original_size=size)


FORMAT = Format(
    "grounding", WANTED, fill, labelled, location,
    options={"expressions": "use the referring expressions (ref_exps) instead of the noun chunks"},
)  # fmt: skip
