"""Verdicts of people and machines on stored regions: append-only files of several writers, and what holds.

A folder of verdicts has ``*.jsonl``, one file a writer, one verdict a line, and ``*.parquet``, into
which :func:`compact` moves them. All are read together (docs/verdicts.md).
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal, cast, get_args
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from pydantic import AwareDatetime, Field, model_validator

from pipeline.data.records import Box
from pipeline.errors import InputError
from pipeline.io.hashing import digest_json
from pipeline.io.paths import is_url
from pipeline.io.strict_model import StrictModel
from pipeline.io.tables import read_table, required_columns, write_table

Decision = Literal["accept", "reject", "fixed", "missing", "unsure", "withdrawn"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
KINDS = ("machine", "person")
"""Kinds of authors; a later one's verdicts outrank an earlier one's."""
CODES_PER_PIXEL = 100
"""Resolution at which boxes are the same target."""
SYNC_SECONDS = 1.0

log = logging.getLogger("glip_self_train")


class Verdict(StrictModel):
    """One decision on a region, or, without ``box``, on a phrase in an image.

    Region: ``accept``; ``reject``; ``fixed``, with its right box in ``boxes``; ``unsure``.
    Phrase: ``accept``: its regions show all that there is; ``reject``: it is not in the image;
    ``missing``: the teacher overlooked ``boxes``; ``unsure``.
    ``withdrawn`` takes back the author's kind's earlier verdict on the same target.

    Boxes are absolute xyxy in pixels of the stored image.
    """

    verdict: Decision
    shard: str
    key: str
    phrase: str = Field(description="as the store has it; of regions of class names: the name")
    start: int | None = Field(None, description="span in the caption; None: regions of class names")
    end: int | None = None
    box: Box | None = Field(None, description="the region's box in the store; None: the phrase as a whole")
    boxes: tuple[Box, ...] = ()
    height: int = Field(description="of the image, in pixels")
    width: int
    by: str = Field(min_length=1, description="who or what decided")
    kind: Literal["person", "machine"] = "person"
    at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    store: str = Field("", description="folder of the regions")
    revision: str = Field("", description="fingerprint in the footer of the shard's file of regions")
    id: str = Field(default_factory=lambda: uuid4().hex)

    @model_validator(mode="after")
    def _boxes_fit(self) -> Verdict:
        wanted = {"fixed": self.box is not None and len(self.boxes) == 1, "missing": self.box is None}
        if not wanted.get(self.verdict, True) or bool(self.boxes) != (self.verdict in ("fixed", "missing")):
            raise ValueError(
                f"{self.verdict}: found {'a' if self.box else 'no'} box and {len(self.boxes)} new ones; want box and "
                "one new box with fixed, new boxes without box with missing, and no new ones else"
            )
        for x1, y1, x2, y2 in (*self.boxes, *([self.box] if self.verdict != "reject" and self.box else [])):
            if not (x2 > x1 and y2 > y1):
                raise ValueError(f"box {(x1, y1, x2, y2)} has no area: want x1 < x2 and y1 < y2")
        if (self.start is None) != (self.end is None):
            raise ValueError(f"found start {self.start} and end {self.end}; want both, or neither")
        return self


VERDICTS = pa.schema(
    [
        *required_columns(pa.string(), "verdict", "shard", "key", "phrase"),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("box", pa.list_(pa.float64())),
        pa.field("boxes", pa.list_(pa.list_(pa.float64())), nullable=False),
        *required_columns(pa.int32(), "height", "width"),
        *required_columns(pa.string(), "by", "kind"),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        *required_columns(pa.string(), "store", "revision", "id"),
    ]
)
"""Columns of verdicts; the fields of :class:`Verdict`."""


class VerdictLog:
    """Appends verdicts to a folder; safe beside other writers and :func:`compact`.

    A verdict is with the system when :meth:`append` returns, so it survives the process's end; it is
    on the disk within SYNC_SECONDS of the next one, or when the log is closed.

    Raises:
        InputError: the folder is a URL, or cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        if is_url(folder):
            raise InputError(f"{folder}: found a URL; want a local folder, as verdicts are appended")
        self._folder, self._file, self._synced = Path(folder), -1, 0.0

    def append(self, *verdicts: Verdict) -> None:
        """Append verdicts, all or none of them."""
        if not verdicts:
            return
        if self._file < 0:
            self._file = self._open()
        data = "".join(f"{verdict.model_dump_json()}\n" for verdict in verdicts).encode()
        end = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            if written < len(data):  # a full disk
                raise OSError(f"{written} of {len(data)} bytes written")
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, end)
            raise InputError(f"{self._folder}: cannot be appended to ({error})") from None
        if time.monotonic() > self._synced + SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def _open(self) -> int:
        """A new file, locked before it gets its name, so that compact never takes it from under a writer."""
        path = self._folder / f"{uuid4().hex}.jsonl"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX)
            os.rename(path.with_suffix(".new"), path)
        except OSError as error:
            raise InputError(f"{self._folder}: cannot be written to ({error.strerror})") from None
        return handle

    def close(self) -> None:
        """Write everything to the disk; later verdicts go to a new file."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> VerdictLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(folder: str | Path) -> pa.Table:
    """All verdicts of a folder (VERDICTS), each once, in order of time.

    The end of a file without a newline is left out: its writer was cut while appending.

    Raises:
        InputError: no such folder, or a file is damaged.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; want one of verdicts (review and import-verdicts write them)")
    while True:
        files = _files(folder)
        try:
            return _distinct([_read(path) for path in files])
        except (FileNotFoundError, InputError):
            if all(path.exists() for path in files):
                raise  # else compact moved its verdicts meanwhile


def compact(folder: str | Path) -> int:
    """Move the verdicts of ended writers into one Parquet file; returns the number of verdicts in it.

    Killed at any point, no verdict is lost, and one that is in two files counts once.
    """
    moved, locks, old = [], [], []
    for path in _files(folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # its writer lives
            os.close(handle)
            continue
        locks.append(handle)
        old.append(path)
        with suppress(FileNotFoundError):  # another compaction was first
            moved.append(_read(path))
    try:
        table = _distinct(moved)
        target = Path(folder) / f"{digest_json(table['id'].to_pylist())[:32]}.parquet"
        if len(table):
            write_table(target, table, VERDICTS, {"stage": "verdicts"})
        for path in old:
            if path != target:
                path.unlink(missing_ok=True)
    finally:
        for handle in locks:
            os.close(handle)
    return len(table)


def _files(folder: str | Path) -> list[Path]:
    return sorted(path for path in Path(folder).iterdir() if path.suffix in (".jsonl", ".parquet"))


def _read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return read_table(path, VERDICTS).replace_schema_metadata().cast(VERDICTS)
    data = path.read_bytes()
    data = data[: data.rfind(b"\n") + 1]
    if not data:
        return VERDICTS.empty_table()
    try:
        options = pj.ParseOptions(explicit_schema=VERDICTS, unexpected_field_behavior="error")
        table = pj.read_json(io.BytesIO(data), parse_options=options).select(VERDICTS.names).cast(VERDICTS)
        if unknown := set(pc.unique(table["verdict"]).to_pylist()) - set(DECISIONS):
            raise ValueError(f"verdict {sorted(unknown)[0]!r}")
        return table
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise InputError(f"{path}: found a line that is no verdict ({error}); want lines as docs/verdicts.md") from None


def _distinct(tables: Sequence[pa.Table]) -> pa.Table:
    """Each verdict once, in order of time."""
    table = pa.concat_tables([VERDICTS.empty_table(), *tables])
    table = table.sort_by([("at", "ascending"), ("id", "ascending")]).combine_chunks()
    first = np.unique(_codes(table["id"]), return_index=True)[1]
    return table if len(first) == len(table) else table.take(np.sort(first))


class Verdicts:
    """The verdicts that hold: of each target its latest one, and a person's before any machine's."""

    def __init__(self, log: pa.Table, folder: str | Path = "verdicts") -> None:
        """log: as :func:`read_log`. folder: its name in messages."""
        self._folder = folder
        target = _targets(log)
        kind = pc.index_in(log["kind"], value_set=pa.array(KINDS)).to_numpy().astype(np.int64)
        latest = np.arange(len(log))
        for of in (target * len(KINDS) + kind, target):  # the log is in order of time
            order = latest[np.lexsort((latest, kind[latest], of[latest]))]
            latest = order[np.append(of[order][1:] != of[order][:-1], True)] if len(order) else order
            gone = pc.equal(log["verdict"], "withdrawn").to_numpy()
            latest = latest[~gone[latest]]
        self.table: pa.Table = log.take(np.sort(latest))

    @classmethod
    def read(cls, folder: str | Path) -> Verdicts:
        """Those of a folder; raises InputError as :func:`read_log`."""
        return cls(read_log(folder), folder)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def shards(self) -> dict[str, pa.Table]:
        """Shard name -> its verdicts."""
        codes, order = _codes(self.table["shard"]), np.argsort(_codes(self.table["shard"]), kind="stable")
        table, bounds = self.table.take(order), np.flatnonzero(np.diff(codes[order], prepend=-1, append=-1))
        return {
            table["shard"][a].as_py(): table.slice(a, b - a)
            for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        }

    def of(self, shard: str) -> pa.Table:
        """The verdicts of a shard."""
        return self.shards.get(shard, VERDICTS.empty_table())

    def fingerprint_of(self, shard: str) -> dict[str, str]:
        """Keyword for fingerprints: digest of a shard's verdicts; {} without any."""
        table = self.of(shard).drop_columns(["at", "id", "store"])
        return {"verdicts": digest_json(sorted(map(repr, table.to_pylist())))} if len(table) else {}

    def warn_of_unknown_shards(self, shards: Iterable[str]) -> None:
        """Warn of verdicts on other shards than ``shards``.

        Raises:
            InputError: there are verdicts, and none is on one of them.
        """
        others = self.shards.keys() - set(shards)
        if not others:
            return
        text = f"{self._folder}: found verdicts on {len(others)} shards that are not here, first {min(others)}"
        if len(others) == len(self.shards):
            raise InputError(f"{text}; want verdicts on these shards")
        log.warning("%s; they are left out", text)


def rows(table: pa.Table) -> Iterator[Verdict]:
    """The verdicts of a table of VERDICTS."""
    return map(Verdict.model_validate, table.to_pylist())


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) int64 numbers that stand for the values; -1 for null."""
    coded = pc.fill_null(column.combine_chunks().dictionary_encode().indices, -1)
    return cast(np.ndarray, coded.to_numpy(zero_copy_only=False)).astype(np.int64)


def _targets(table: pa.Table) -> np.ndarray:
    """(n,) int64 number of the region or phrase that each verdict is of."""
    # of captions the span is the phrase, whatever its text
    span = np.stack([pc.fill_null(table[c], -1).to_numpy().astype(np.int64) for c in ("start", "end")], 1)
    phrase = np.where(span[:, 0] < 0, _codes(table["phrase"]), -1)
    there = pc.is_valid(table["box"]).to_numpy()
    boxes = np.full((len(table), 4), -1, np.int64)
    if there.any():
        values = table["box"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
        boxes[there] = np.rint(values * CODES_PER_PIXEL)
    parts = np.column_stack([_codes(table["shard"]), _codes(table["key"]), span, phrase, there, boxes])
    return np.unique(parts, axis=0, return_inverse=True)[1].reshape(-1) if len(parts) else np.zeros(0, np.int64)
