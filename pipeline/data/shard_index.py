"""Where the records of a training shard lie in it: made from its tar headers once, remembered while the shard stays as it is."""

from __future__ import annotations

import logging
import tarfile
import zlib

import numpy as np

from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.remote_shards import tar_stream
from pipeline.errors import InputError
from pipeline.io.file_cache import Mark, cache_get, cache_put, mark_of
from pipeline.io.paths import is_url

log = logging.getLogger("glip_self_train")

Place = tuple[int, int]
"""(offset, size) of a file in the tar, in bytes."""

LINK = "link"
IMAGES = (LINK, *IMAGE_EXTENSIONS)
"""What may hold a record's image, the first that is there."""

ROW = np.dtype(
    [("json", "<u8"), ("json_size", "<u8"), ("image", "<u8"), ("image_size", "<u8"), ("kind", "u1"), ("key_end", "<u4")]
)
"""37 bytes a record; its key ends at ``key_end`` of all keys, one after another, and begins where the one before it ends."""

FORMAT = b"shard index 1 " + ",".join(IMAGES).encode() + b"\n"


class ShardIndex:
    """The keys of a shard's records, in their order, and the places of each one's files.

    It is two blocks of memory however many records there are: 27 million as Python objects would be 16 GB in every process.
    """

    def __init__(self, rows: np.ndarray, keys: bytes) -> None:
        self._rows, self._keys = rows, keys

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, but for a few hundred."""
        return self._rows.nbytes + len(self._keys)

    def key(self, row: int) -> str:
        """The key of a record."""
        start = int(self._rows["key_end"][row - 1]) if row else 0
        return self._keys[start : int(self._rows["key_end"][row])].decode(errors="surrogateescape")

    def record(self, row: int) -> Place:
        """Where the labels of a record lie."""
        return int(self._rows["json"][row]), int(self._rows["json_size"][row])

    def image(self, row: int) -> tuple[str, Place]:
        """The extension of a record's image, or LINK, and where it lies."""
        place = int(self._rows["image"][row]), int(self._rows["image_size"][row])
        return IMAGES[self._rows["kind"][row]], place

    def to_bytes(self) -> bytes:
        """As it is remembered, with a checksum."""
        body = b"%d\n%s%s" % (len(self._rows), self._rows.tobytes(), self._keys)
        return FORMAT + b"%08x\n" % zlib.crc32(body) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """What :meth:`to_bytes` wrote.

        Raises:
            ValueError: it is of another format, or damaged.
        """
        if not data.startswith(FORMAT):
            raise ValueError("another format")
        start = len(FORMAT) + 9
        body = memoryview(data)[start:]
        if data[len(FORMAT) : start] != b"%08x\n" % zlib.crc32(body):
            raise ValueError("damaged")
        line = data.index(b"\n", start) + 1
        keys = line + int(data[start:line]) * ROW.itemsize
        return cls(np.frombuffer(data[line:keys], ROW), data[keys:])  # copies, or each would keep the whole


def index_shard(shard: str, mark: Mark | None = None) -> ShardIndex:
    """The index of a training shard: remembered, or read from its tar headers. ``mark``: the shard's, if it is known already.

    Raises:
        InputError, RunError: as :func:`read_headers`.
    """
    mark = mark or mark_of(shard)
    if mark is None:
        return read_headers(shard)
    known = cache_get("indexes", shard, mark)
    if known is not None:
        try:
            return ShardIndex.from_bytes(known)
        except ValueError as error:
            log.info("%s: its remembered index is of no use (%s); made anew", shard, error)
    made = read_headers(shard)
    cache_put("indexes", shard, mark, made.to_bytes())
    return made


def read_headers(shard: str) -> ShardIndex:
    """The index of a training shard from the headers of its members.

    Raises:
        InputError: missing or damaged file, or a sample without image or record; training shards are our own, so
            damage here is not a crawl's noise but a fault to be told at once. RunError: the store behind a URL does not answer.
    """
    from webdataset.tariterators import (
        base_plus_ext,  # brings torch along, which those who only look at a run do without
    )

    entries: dict[str, dict[str, Place]] = {}
    try:
        with tar_stream(shard) if is_url(shard) else tarfile.open(shard, "r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                key, extension = base_plus_ext(info.name)
                if key is not None:
                    entries.setdefault(key, {})[extension] = (info.offset_data, info.size)
    except FileNotFoundError:
        raise InputError(f"{shard}: no such file") from None
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard}: not a whole tar archive ({error})") from None
    rows, keys = np.zeros(len(entries), ROW), bytearray()
    for i, (key, entry) in enumerate(entries.items()):
        kind = next((n for n, extension in enumerate(IMAGES) if extension in entry), None)
        if "json" not in entry or kind is None:
            raise InputError(f"{shard}: {key} has {sorted(entry)}, want a json record and an image or a link to one")
        keys += key.encode(errors="surrogateescape")
        rows[i] = (*entry["json"], *entry[IMAGES[kind]], kind, len(keys))
    return ShardIndex(rows, bytes(keys))
