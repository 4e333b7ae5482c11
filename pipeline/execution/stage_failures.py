"""Recognition of failures that concern every shard of a stage: it would make and lose each of them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import StageError
from pipeline.io.files import StoreError
from pipeline.io.paths import is_url

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
"""Errors of writing, wherever it is."""
UNUSABLE = {
    errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.ESTALE, errno.ENOTCONN, errno.ENXIO,
    errno.EROFS,
}  # fmt: skip
"""Errors that concern all shards if they are of the output folder."""
_RUST = re.compile(r"\(os error (\d+)\)")
"""The number of an operating system's error in the text of a library written in Rust, such as safetensors."""


def stage_failure(error: BaseException | str, out: str | Path = "") -> StageError | None:
    """The failure that an error means for its whole stage; None if it concerns one shard alone.

    Args:
        out: folder of the stage's outputs.
    """
    if isinstance(error, str):
        return None
    for cause in _chain(error):
        if isinstance(cause, StageError):
            return cause
        if isinstance(cause, StoreError) and (cause.for_all or (cause.refused and out and _below(cause.url, out))):
            return StageError(str(cause))
        number = cause.errno if isinstance(cause, OSError) else None
        if number is None and (found := _RUST.search(str(cause))):
            number = int(found[1])
        name = getattr(cause, "filename", None)
        path = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""
        ours = bool(path and out) and _below(path, out)
        if number in FULL or (number in UNUSABLE and ours):
            assert number is not None
            where = str(out) if ours or not path else path
            return StageError(f"{where}: {os.strerror(number)}" if where else os.strerror(number))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from or while handling."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _below(path: str, folder: str | Path) -> bool:
    """Whether a file is a folder or below it."""
    if is_url(path) or is_url(folder):
        return f"{path}/".startswith(f"{str(folder).rstrip('/')}/")
    return Path(path).absolute().is_relative_to(Path(folder).absolute())
