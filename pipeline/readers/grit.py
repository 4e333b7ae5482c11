"""GRIT (Kosmos-2, arXiv 2306.14824): captions whose noun chunks or referring expressions have boxes
predicted by GLIP.

Input is img2dataset's output: shards whose ``KEY.json`` has GRIT's columns, or ``.parquet`` tables
(or JSON Lines with the same fields) and a folder of ``00000/KEY.jpg``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.keys import image_key
from pipeline.errors import InputError
from pipeline.io.files import listing
from pipeline.io.paths import is_url
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tars import TarProblems, read_tar
from pipeline.readers.base import (
    Format,
    Header,
    ImageLocation,
    LabelCollector,
    LabelledImage,
    SetFiles,
    clipped,
    is_number,
    lose,
    option_flag,
)
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.json_stream import stream_lines
from pipeline.readers.sniff import describe_row, wrong_format

WANTED = "GRIT as img2dataset leaves it (rows with `key`, `caption` and `noun_chunks` or `ref_exps`)"
ANNOTATOR = "grit"
MAX_BAD_ROWS = 100
"""The set is refused if its first rows, this many, are all invalid."""
_Where = tuple[str, str, int, int]
"""(key, shard, offset, bytes) of an image."""


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the shards or tables. Invalid rows are skipped and counted as ``bad_labels``, damage of
    tars by its reason; the set is refused if its first rows are all invalid.
    """
    column = "ref_exps" if option_flag(files, "expressions") else "noun_chunks"
    problems, valid = TarProblems(), 0
    first_error: InputError | None = None
    for path in _paths(files.annotations):
        for row, where in _rows(path, problems):
            try:
                key, image = _entry(path, row, where, column)
            except InputError as error:
                first_error = first_error or error
                problems.add("bad_labels", str(error).replace(path, _name(path)))
                if not valid and problems.counts["bad_labels"] >= MAX_BAD_ROWS:
                    raise first_error from None
                continue
            valid += 1
            index.image(key, image)
    if first_error is not None and not valid:
        raise first_error
    return {"first_counts": True, "lost_samples": problems.counts, "notes": problems.notes}


def _entry(path: str, row: Any, where: _Where | None, column: str) -> tuple[str, tuple[Any, str, list[list[Any]]]]:
    """(key, (location, caption, chunks)) of a row; raises InputError if it is none of GRIT's."""
    if isinstance(row, InputError):  # a line that is not JSON
        raise row
    name = f"{path}: {where[0]}.json" if where else path
    if not isinstance(row, dict) or not isinstance(row.get("caption"), str) or column not in row:
        raise InputError(f"{name}: want {WANTED}; found {describe_row(row)}")
    if where is None:
        key = str(row.get("key", ""))
        if len(key) < 5:
            raise InputError(f"{path}: want {WANTED}; found the key {key!r}")
        # img2dataset's keys are the shard's number and at least four digits
        location: tuple[str, int, int | None] = (f"{key[:-4]}/{key}.jpg", 0, None)
    else:
        key, location = where[0], where[1:]
    chunks = row[column]
    try:
        chunks = json.loads(chunks) if isinstance(chunks, str) else chunks
        return key, (location, row["caption"], [list(chunk) for chunk in chunks])
    except (ValueError, TypeError):
        raise InputError(
            f"{name}: {key}: want a list of chunks in `{column}`; found {str(row[column])[:40]!r}"
        ) from None


def _paths(pattern: str) -> list[str]:
    for suffix in (".tar", ".parquet", ".jsonl", ".json"):
        if pattern.endswith(suffix):
            return expand_shards(pattern, suffix=suffix)
    if not is_url(pattern) and Path(pattern).is_dir() and not listing(pattern, ".tar"):
        raise wrong_format(pattern, WANTED)
    return expand_shards(pattern, suffix=".tar")


def _rows(path: str, problems: TarProblems) -> Iterator[tuple[Any, _Where | None]]:
    """(row, its image's location if it is in the shard)."""
    if path.endswith(".tar"):
        for sample in read_tar(path, problems):
            extension = next((e for e in IMAGE_EXTENSIONS if e in sample.files), None)
            if extension is None or "json" not in sample.files:
                missing = "image" if extension is None else "json"
                problems.add(f"no_{missing}", f"{_name(path)}: {sample.key}: no {missing}")
                continue
            try:
                row = json.loads(sample.files["json"])
            except ValueError:
                row = "no JSON"
            yield row, (sample.key, path, sample.offsets[extension], len(sample.files[extension]))
    elif path.endswith(".parquet"):
        from pipeline.io.tables import open_parquet  # imports pyarrow

        file = open_parquet(path)
        columns = [n for n in ("key", "caption", "noun_chunks", "ref_exps", "status") if n in file.schema_arrow.names]
        for batch in file.iter_batches(1000, columns=columns):
            for row in batch.to_pylist():
                if row.pop("status", "success") == "success":
                    yield row, None
    else:
        for _, row in stream_lines(path, WANTED):
            yield row, None


def _name(path: str) -> str:
    """File name for the report, which has no folders."""
    return path.rsplit("/", 1)[-1]


def location(image_id: Any, image: Any) -> ImageLocation:
    file, offset, size = image[0]
    return ImageLocation(file, offset=offset, size=size, absolute=size is not None)


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry. Chunks are [start, end, x1, y1, x2, y2, score] with relative boxes."""
    _, caption, chunks = entry.image
    labels = LabelCollector()
    for chunk in chunks:
        start, end = map(int, chunk[:2]) if len(chunk) > 1 and all(map(is_number, chunk[:2])) else (0, 0)
        inside = 0 <= start < end <= len(caption)
        box, score = None, None
        if len(chunk) != 7 or not all(map(is_number, chunk)):
            lose(labels.lost, "bad_box", f"{chunk}; want start, end, x1, y1, x2, y2, score")
        elif not inside:
            lose(labels.lost, "span_outside_caption", f"{chunk[:2]} of {len(caption)} characters")
        else:
            box, score = clipped(tuple(chunk[2:6]), (1, 1), labels.lost), float(chunk[6])
        if inside:
            labels.add(box, caption[start:end], ((start, end),), score=score, annotator=ANNOTATOR)
    return labels.image(image_key(entry.id), location(entry.id, entry.image), caption=caption, relative=True)


FORMAT = Format(
    "grounding", WANTED, fill, labelled, location,
    options={"expressions": "use the referring expressions (ref_exps) instead of the noun chunks"},
)  # fmt: skip
