"""Fast writer of tar archives, byte-identical to tarfile's output."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from typing import Any

_BLOCK = tarfile.BLOCKSIZE
_MAX_USTAR_SIZE = 8**11
"""Members of this size or larger need an extended (pax) header."""
_JOIN_BELOW = 1 << 20
"""Bytes: smaller samples are joined and written in one call."""
_ZEROS = bytes(_BLOCK)


class TarWriter:
    """Writes members with mode 0644, owner root and mtime 0 to a stream, in the given order."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._written = 0
        blank = _info("", 0).tobuf(tarfile.USTAR_FORMAT)
        self._middle, self._rest = blank[100:124], blank[136:148]  # between name and size, between size and checksum
        self._tail = blank[156:]
        # the checksum field itself counts as eight spaces
        self._base = sum(self._middle) + sum(self._rest) + sum(self._tail) + 8 * 32

    def add(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Append files given as (name, content)."""
        parts: list[bytes] = []
        size = 0
        for name, data in files:
            length = len(data)
            parts += (self._header(name, length), data, _ZEROS[: -length % _BLOCK])
            size += length
        if size < _JOIN_BELOW:
            self._put(b"".join(parts))
        else:
            for part in parts:
                self._put(part)

    def _header(self, name: str, size: int) -> bytes:
        if len(name) > 100 or not name.isascii() or size >= _MAX_USTAR_SIZE or "\0" in name:
            return _info(name, size).tobuf(tarfile.PAX_FORMAT)
        text, length = name.encode("ascii"), b"%011o\0" % size
        checksum = self._base + sum(text) + sum(length)
        return b"%s%s%s%s%06o\0 %s" % (text.ljust(100, b"\0"), self._middle, length, self._rest, checksum, self._tail)

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._written += len(data)

    def close(self) -> None:
        """Write the end-of-archive mark and pad the last record."""
        self._put(bytes(2 * _BLOCK))
        self._put(bytes(-self._written % tarfile.RECORDSIZE))


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o644, "root", "root"
    return info
