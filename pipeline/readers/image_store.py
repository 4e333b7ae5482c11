"""Where a set's images lie, and reading them: files below folders, bytes inside of other files, local or behind URLs."""

from __future__ import annotations

import base64
import binascii
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice

from pipeline.data.images import ImageError
from pipeline.errors import InputError
from pipeline.io.files import open_file, read_range, read_small
from pipeline.io.paths import is_url, join
from pipeline.readers.base import Place

REQUESTS = 16
"""Images asked for at a time, of a store behind a URL."""


class _Missing(Exception):
    """No image in that place."""


@dataclass(frozen=True)
class ImageStore:
    """The image folders of a set: to look in one after the other, or by the names that the labels give them."""

    folders: tuple[str, ...] | Mapping[str, str]

    def paths(self, place: Place) -> list[str]:
        """The files that an image may lie in, to look for in this order: below the folder that its row names, else below each.

        Raises:
            ImageError: ``unknown_folder``.
        """
        if place.absolute:
            return [place.file]
        if not isinstance(self.folders, tuple):
            if place.folder is None or place.folder not in self.folders:
                raise ImageError(
                    "unknown_folder", f"{place.file}: {place.folder!r}; want one of {sorted(self.folders)}"
                )
            return [join(self.folders[place.folder], place.file)]
        # labels may name where their images lie on this machine
        own = [place.file] if place.file.startswith("/") else []
        return [*(join(folder, place.file) for folder in self.folders), *own]

    def size(self, place: Place) -> int | None:
        """Bytes of the image; -1 if it is not there; None behind a URL, where each answer would take a request."""
        if place.size is not None:
            return place.size
        try:
            paths = self.paths(place)
        except ImageError:
            return -1
        for path in paths:
            if is_url(path):
                return None
            with suppress(OSError, ValueError):
                return os.stat(path).st_size
        return -1

    def reading(self, places: Iterable[Place]) -> Iterator[Callable[[], bytes]]:
        """For each place a function that gives its image, or raises as :meth:`read`; requests to a store are made ahead."""
        waiting = iter(places)
        if not self._remote:
            for place in waiting:
                yield partial(self.read, place)
            return
        with ThreadPoolExecutor(REQUESTS) as pool:
            ahead = deque(pool.submit(self.read, place) for place in islice(waiting, 2 * REQUESTS))
            while ahead:
                yield ahead.popleft().result
                ahead.extend(pool.submit(self.read, place) for place in islice(waiting, 1))

    @property
    def _remote(self) -> bool:
        """Whether images come over a network: then one after the other would be waiting, mostly."""
        return any(map(is_url, self.folders if isinstance(self.folders, tuple) else self.folders.values()))

    def read(self, place: Place) -> bytes:
        """The encoded image.

        Raises:
            ImageError: ``image_missing``, ``unreadable_file``, ``unknown_folder``, or ``broken_image`` for what is no base64.
        """
        paths = self.paths(place)
        for path in paths[:-1]:
            with suppress(_Missing):
                return self._read(path, place)
        try:
            return self._read(paths[-1], place)
        except _Missing:
            raise ImageError("image_missing", f"{' and '.join(paths)}: not there") from None

    @staticmethod
    def _read(path: str, place: Place) -> bytes:
        try:
            if place.size is not None:
                data = read_range(path, place.offset, place.size)
                return base64.b64decode(data, validate=True) if place.base64 else data
            if not is_url(path):
                return read_small(path)
            with open_file(path) as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _Missing from None
        except InputError as error:
            if "no such object" in str(error):
                raise _Missing from None
            raise
        except binascii.Error as error:
            raise ImageError("broken_image", f"not base64: {error}") from None
        except (OSError, ValueError) as error:
            if is_url(path):  # a store's failure is no fault of the image
                raise
            raise ImageError("unreadable_file", f"{path[:200]}: {error}") from None
