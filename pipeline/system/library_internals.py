"""Uses of undocumented parts of Python's library; a test states the versions that were tried."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable
from json import encoder
from typing import Any


class EndRecordingTarInfo(tarfile.TarInfo):
    """TarInfo that sets ``end`` of its TarFile: "end_mark", "truncated_tar" or "bad_tar_header".

    tarfile stops silently at a damaged header in the middle of an archive.
    """

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        try:
            return super().fromtarfile(tarfile)
        except _tar_error("EOFHeaderError"):
            tarfile.end = "end_mark"
            raise
        except _tar_error("HeaderError") as error:
            cut_off = "empty" in str(error) or "truncated" in str(error)
            tarfile.end = "truncated_tar" if cut_off else "bad_tar_header"
            raise


def _tar_error(name: str) -> type[Exception]:
    error: type[Exception] = getattr(tarfile, name)
    return error


def is_uncompressed(stream: tarfile.TarFile) -> bool:
    """Whether the archive read by ``tarfile.open(mode="r|*")`` is not compressed."""
    return str(getattr(stream.fileobj, "comptype")) == "tar"  # noqa: B009 - not in the type stubs


def forget_members(tar: tarfile.TarFile) -> None:
    """Free the headers read so far; tarfile keeps all of them."""
    setattr(tar, "members", [])  # noqa: B010 - not in the type stubs


def json_chunks(default: Callable[[Any], Any]) -> Callable[[Any, int], Iterable[str]]:
    """C encoder of compact JSON with sorted keys: (value, indentation level) -> chunks of text.

    JSONEncoder.encode creates one for every value, which takes half of the time of a small value.
    """
    make, encode_string = (getattr(encoder, name) for name in ("c_make_encoder", "encode_basestring"))
    chunks: Callable[[Any, int], Iterable[str]] = make(None, default, encode_string, None, ":", ",", True, False, True)
    return chunks
