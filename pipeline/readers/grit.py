"""GRIT (Kosmos-2, arXiv 2306.14824): captions whose noun chunks or expressions have boxes, drawn by
a GLIP.

Read from img2dataset's output: shards whose ``KEY.json`` has GRIT's columns, or its ``.parquet``
tables beside a folder of ``00000/KEY.jpg``; JSON Lines with the same fields are read as tables are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.keys import image_key
from pipeline.data.records import Region, Span
from pipeline.errors import InputError
from pipeline.io.files import listing
from pipeline.io.paths import is_url
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tars import TarProblems, read_tar
from pipeline.readers.base import Format, Header, Labelled, Place, SetFiles, clipped, number, phrase_of
from pipeline.readers.index import Entry, Filling
from pipeline.readers.json_stream import stream_lines
from pipeline.readers.sniff import refuse

WANTED = "GRIT as img2dataset leaves it (rows with `key`, `caption` and `noun_chunks` or `ref_exps`)"
ANNOTATOR = "grit"
LOOK_AT = 100
"""Rows after which a set without a good one is none."""
_Where = tuple[str, str, int, int]
"""(key, shard, offset, bytes) of an image."""


def fill(files: SetFiles, index: Filling) -> dict[str, Any]:
    """A row that is none costs itself, in a crawl of millions; they are counted as ``bad_labels``,
    and a tar's faults by their names.

    Raises:
        InputError: not GRIT's layout: none of the first rows is.
    """
    column = "ref_exps" if files.options.get("expressions") else "noun_chunks"
    problems, good = TarProblems(), 0
    wrong: InputError | None = None
    for path in _paths(files.annotations):
        for row, where in _rows(path, problems):
            try:
                key, image = _entry(path, row, where, column)
            except InputError as error:
                wrong = wrong or error
                problems.add("bad_labels", str(error).replace(path, _name(path)))
                if not good and problems.counts["bad_labels"] >= LOOK_AT:
                    raise wrong from None
                continue
            good += 1
            index.image(key, image)
    if wrong is not None and not good:
        raise wrong
    return {"first_counts": True, "lost_samples": problems.counts, "notes": problems.notes}


def _entry(path: str, row: Any, where: _Where | None, column: str) -> tuple[str, tuple[Any, str, list[list[Any]]]]:
    """(key, what the index keeps of a row).

    Raises:
        InputError: it is none of GRIT's.
    """
    name = f"{path}: {where[0]}.json" if where else path
    if not isinstance(row, dict) or not isinstance(row.get("caption"), str) or column not in row:
        found = f"one with {', '.join(f'`{k}`' for k in row)}" if isinstance(row, dict) else str(row)[:40]
        raise InputError(f"{name}: want {WANTED}; found {found}")
    if where is None:
        key = str(row.get("key", ""))
        if len(key) < 5:
            raise InputError(f"{path}: want {WANTED}; found the key {key!r}")
        # img2dataset's keys are the shard's number and four digits or more in it
        place: tuple[str, int, int | None] = (f"{key[:-4]}/{key}.jpg", 0, None)
    else:
        key, place = where[0], where[1:]
    chunks = row[column]
    try:
        chunks = json.loads(chunks) if isinstance(chunks, str) else chunks
        return key, (place, row["caption"], [list(map(_plain, chunk)) for chunk in chunks])
    except (ValueError, TypeError):
        raise InputError(
            f"{name}: {key}: want a list of chunks in `{column}`; found {str(row[column])[:40]!r}"
        ) from None


def _paths(pattern: str) -> list[str]:
    for suffix in (".tar", ".parquet", ".jsonl", ".json"):
        if pattern.endswith(suffix):
            return expand_shards(pattern, suffix=suffix)
    if not is_url(pattern) and Path(pattern).is_dir() and not listing(pattern, ".tar"):
        raise refuse(pattern, WANTED)
    return expand_shards(pattern, suffix=".tar")


def _rows(path: str, problems: TarProblems) -> Iterator[tuple[Any, _Where | None]]:
    """(row, its image if that lies in the shard)."""
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
    """Of a file, as it stands in what is kept: folders are no part of that."""
    return path.rsplit("/", 1)[-1]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def place(number: Any, image: Any) -> Place:
    file, offset, size = image[0]
    return Place(file, offset=offset, size=size, absolute=size is not None)


def labelled(entry: Entry, header: Header) -> Labelled:
    """Chunks are [start, end, x1, y1, x2, y2, score], the box in shares of the image.

    Regions are lost as ``bad_box``, ``box_without_area``, ``box_outside_image`` or
    ``span_outside_caption``.
    """
    _, caption, chunks = entry.image
    regions: list[Region] = []
    lost: Counter[str] = Counter()
    boxless: list[Span] = []
    for chunk in chunks:
        start, end = map(int, chunk[:2]) if len(chunk) > 1 and all(map(number, chunk[:2])) else (0, 0)
        inside = 0 <= start < end <= len(caption)
        box = None
        if len(chunk) != 7 or not all(map(number, chunk)):
            lost["bad_box"] += 1
        elif not inside:
            lost["span_outside_caption"] += 1
        else:
            box = clipped(tuple(chunk[2:6]), (1, 1), lost)
        if inside and box is None:
            boxless.append((start, end))
        elif box is not None:
            spans = ((start, end),)
            phrase, score = phrase_of(caption, spans), float(chunk[6])
            regions.append(Region(box=box, phrase=phrase, tokens_positive=spans, score=score, annotator=ANNOTATOR))
    return Labelled(
        image_key(entry.id), place(entry.id, entry.image),
        caption=caption, regions=tuple(regions), boxless=tuple(boxless), relative=True, lost=lost,
    )  # fmt: skip


FORMAT = Format(
    "grounding", WANTED, fill, labelled, place,
    options={"expressions": "take the referring expressions (ref_exps), not the noun chunks"},
)  # fmt: skip
