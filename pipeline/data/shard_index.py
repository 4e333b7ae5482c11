"""Index of a training shard's records, built from its tar headers and cached by file version."""

from __future__ import annotations

import logging
import tarfile
import zlib
from collections.abc import Iterator

import numpy as np

from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.remote_shards import tar_stream
from pipeline.errors import InputError
from pipeline.io.file_cache import FileVersion, cache_get, cache_put, file_version
from pipeline.io.paths import COMPRESSED_TARS, is_url
from pipeline.io.tars import split_name
from pipeline.system.library_internals import forget_members

log = logging.getLogger("glip_self_train")

ByteRange = tuple[int, int]
"""(offset, size) of a member's content in the tar, in bytes."""

LINK = "link"
IMAGES = (LINK, *IMAGE_EXTENSIONS)
"""Extensions of the member that has a record's image; the first that exists is used."""

ROW = np.dtype(
    [("json", "<u8"), ("json_size", "<u8"), ("image", "<u8"), ("image_size", "<u8"), ("kind", "u1"), ("key_end", "<u4")]
)
"""One record. ``kind``: index in IMAGES. ``key_end``: end of its key among all keys."""

FORMAT = b"shard index 1 " + ",".join(IMAGES).encode() + b"\n"


class ShardIndex:
    """Keys of a shard's records in order, and the byte ranges of their files.

    It is two blocks of memory: as Python objects, 27 million records would take 16 GB in every
    process.
    """

    def __init__(self, rows: np.ndarray, keys: bytes) -> None:
        self._rows, self._keys = rows, keys

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Memory in bytes, without the object's overhead."""
        return self._rows.nbytes + len(self._keys)

    def key(self, row: int) -> str:
        """Key of a record."""
        start = int(self._rows["key_end"][row - 1]) if row else 0
        return self._keys[start : int(self._rows["key_end"][row])].decode(errors="surrogateescape")

    def record(self, row: int) -> ByteRange:
        """Byte range of a record's labels."""
        return int(self._rows["json"][row]), int(self._rows["json_size"][row])

    def image(self, row: int) -> tuple[str, ByteRange]:
        """Extension of a record's image, or LINK, and its byte range."""
        content = int(self._rows["image"][row]), int(self._rows["image_size"][row])
        return IMAGES[self._rows["kind"][row]], content

    def to_bytes(self) -> bytes:
        """Serialise with a checksum."""
        body = b"%d\n%s%s" % (len(self._rows), self._rows.tobytes(), self._keys)
        return FORMAT + b"%08x\n" % zlib.crc32(body) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """Deserialise the output of :meth:`to_bytes`.

        Raises:
            ValueError: another format, or damaged.
        """
        if not data.startswith(FORMAT):
            raise ValueError("another format")
        start = len(FORMAT) + 9
        body = memoryview(data)[start:]
        if data[len(FORMAT) : start] != b"%08x\n" % zlib.crc32(body):
            raise ValueError("damaged")
        line = data.index(b"\n", start) + 1
        keys = line + int(data[start:line]) * ROW.itemsize
        return cls(np.frombuffer(data[line:keys], ROW), data[keys:])  # slices are copies, so `data` can be freed


def index_shard(shard: str, version: FileVersion | None = None) -> ShardIndex:
    """Index of a training shard, from the cache or its tar headers; ``version``: its own, if known.

    Raises:
        InputError, RunError: as :func:`read_headers`.
    """
    version = version or file_version(shard)
    if version is None:
        return read_headers(shard)
    cached = cache_get("indexes", shard, version)
    if cached is not None:
        try:
            return ShardIndex.from_bytes(cached)
        except ValueError as error:
            log.info("%s: invalid cached index (%s); building it again", shard, error)
    index = read_headers(shard)
    cache_put("indexes", shard, version, index.to_bytes())
    return index


def member_ranges(shard: str) -> Iterator[tuple[str, ByteRange]]:
    """Name and byte range of each member of an uncompressed tar, from its headers.

    Raises:
        FileNotFoundError, OSError, tarfile.TarError: missing, compressed, or damaged from here on.
    """
    with tar_stream(shard) if is_url(shard) else tarfile.open(shard, "r:") as tar:
        for info in tar:
            forget_members(tar)
            yield info.name, (info.offset_data, info.size)


def read_headers(shard: str) -> ShardIndex:
    """Build the index of a training shard from its tar headers.

    Raises:
        InputError: the shard is missing or damaged, or a sample has no image or no record. Unlike
            crawl shards, training shards are written by this project, so damage is an error.
        RunError: the store of a remote shard does not answer.
    """
    entries: dict[str, dict[str, ByteRange]] = {}
    try:
        for name, content in member_ranges(shard):
            if (parts := split_name(name)) is not None:
                entries.setdefault(parts[0], {})[parts[1]] = content
    except FileNotFoundError:
        raise InputError(f"{shard}: no such file") from None
    except (tarfile.TarError, OSError) as error:
        advice = "; training reads parts of it, so it must not be compressed" if shard.endswith(COMPRESSED_TARS) else ""
        raise InputError(f"{shard}: not a whole tar archive ({error}){advice}") from None
    rows, keys = np.zeros(len(entries), ROW), bytearray()
    for i, (key, entry) in enumerate(entries.items()):
        kind = next((n for n, extension in enumerate(IMAGES) if extension in entry), None)
        if "json" not in entry or kind is None:
            raise InputError(f"{shard}: {key} has {sorted(entry)}, want a json record and an image or a link to one")
        keys += key.encode(errors="surrogateescape")
        rows[i] = (*entry["json"], *entry[IMAGES[kind]], kind, len(keys))
    return ShardIndex(rows, bytes(keys))
