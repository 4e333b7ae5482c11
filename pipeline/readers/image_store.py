"""Reading a set's images: files in folders, or byte ranges of files, local or remote."""

from __future__ import annotations

import base64
import binascii
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

from pipeline.data.images import ImageError
from pipeline.errors import InputError
from pipeline.execution.prefetch import submit_ahead
from pipeline.io.files import open_file, read_range, read_small
from pipeline.io.paths import is_url
from pipeline.readers.base import ImageLocation, image_paths
from pipeline.readers.sniff import IN_PLACE, beside

REQUESTS = 16
"""Number of concurrent requests for remote images."""


@dataclass(frozen=True)
class ImageStore:
    """Image folders: a tuple to search in order, or a mapping from names in annotations."""

    folders: tuple[str, ...] | Mapping[str, str]

    def paths(self, location: ImageLocation) -> list[str]:
        """Candidate paths of an image, in search order.

        Raises:
            ImageError: ``unknown_folder``: the annotations name a folder that the manifest does
                not.
        """
        if location.absolute:
            return [location.file]
        folders = self.folders
        if not isinstance(folders, tuple):
            if location.folder is None or location.folder not in folders:
                raise ImageError(
                    "unknown_folder", f"{location.file}: {location.folder!r}; want one of {sorted(folders)}"
                )
            folders = (folders[location.folder],)
        return image_paths(folders, location.file)

    def size(self, location: ImageLocation) -> int | None:
        """Size of an image in bytes; -1 if missing; None if remote, to avoid requests."""
        if location.size is not None:
            return location.size
        try:
            paths = self.paths(location)
        except ImageError:
            return -1
        for path in paths:
            if is_url(path):
                return None
            with suppress(OSError, ValueError):
                return os.stat(path).st_size
        return -1

    def reading(self, locations: Iterable[ImageLocation]) -> Iterator[Callable[[], bytes]]:
        """For each location a function that returns its image, or raises, as :meth:`read`.
        Prefetches remote images.
        """
        if not any(map(is_url, self.folders if isinstance(self.folders, tuple) else self.folders.values())):
            for location in locations:
                yield partial(self.read, location)
            return
        with ThreadPoolExecutor(REQUESTS) as pool:
            for _, future in submit_ahead(pool, self.read, locations, 2 * REQUESTS):
                yield future.result

    def read(self, location: ImageLocation) -> bytes:
        """Encoded image.

        Raises:
            ImageError: ``image_missing``, ``unreadable_file``, ``unknown_folder``, or
                ``broken_image`` (invalid base64).
        """
        paths = self.paths(location)
        for path in paths:
            with suppress(FileNotFoundError):
                return self._read(path, location)
        hints = dict.fromkeys(beside(path) for path in paths)
        hint = next((hint for hint in hints if hint.startswith(IN_PLACE)), next(iter(hints), ""))
        raise ImageError("image_missing", f"{' and '.join(paths)}: no such file{hint}")

    @staticmethod
    def _read(path: str, location: ImageLocation) -> bytes:
        """Encoded image. A folder, or no object in a store, is a FileNotFoundError as well."""
        try:
            if location.column is not None:
                return _cell(path, location.offset, location.column)
            if location.size is not None:
                data = read_range(path, location.offset, location.size)
                return base64.b64decode(data, validate=True) if location.base64 else data
            if not is_url(path):
                return read_small(path)
            with open_file(path) as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise FileNotFoundError(path) from None
        except InputError as error:
            if "no such object" in str(error):
                raise FileNotFoundError(path) from None
            raise
        except binascii.Error as error:
            raise ImageError("broken_image", f"not base64: {error}") from None
        except (OSError, ValueError) as error:
            if is_url(path):  # a failure of the store, not of this image
                raise
            raise ImageError("unreadable_file", f"{path[:200]}: {error}") from None


def _cell(path: str, row: int, column: str) -> bytes:
    """Image in a row of a Parquet table: bytes, or an object with ``bytes``."""
    starts = _row_groups(path)
    group = bisect_right(starts, row) - 1
    value = _column(path, group, column)[row - starts[group]].as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise ImageError("image_missing", f"{path}: row {row}: no bytes in `{column}`")
    return data


@lru_cache(maxsize=4)
def _row_groups(path: str) -> list[int]:
    """First rows of the groups."""
    from pipeline.io.tables import open_parquet  # imports pyarrow

    groups = open_parquet(path).metadata
    sizes = [groups.row_group(n).num_rows for n in range(groups.num_row_groups)]
    return [0, *accumulate(sizes[:-1])]


@lru_cache(maxsize=1)
def _column(path: str, group: int, column: str) -> Any:
    """A row group's column; images are read in their order, so one is kept."""
    from pipeline.io.tables import open_parquet  # imports pyarrow

    return open_parquet(path).read_row_group(group, columns=[column]).column(0)
