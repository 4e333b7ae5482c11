"""Where a set's images lie, and reading them: files below folders, bytes inside of other files, local or behind URLs."""

from __future__ import annotations

import base64
import binascii
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from pipeline.errors import InputError
from pipeline.images import ImageError
from pipeline.io.files import open_file, read_range, read_small
from pipeline.io.paths import is_url, join
from pipeline.sources.base import Place

REQUESTS = 16
"""Images asked for at a time, of a store behind a URL."""


@dataclass(frozen=True)
class ImageStore:
    """The image folders of a set: to look in one after the other, or by the names that the labels give them."""

    folders: tuple[str, ...] | Mapping[str, str]

    def path(self, place: Place) -> str:
        """The file that an image lies in: below the folder that its row names, else the first of them that has it.

        Raises:
            ImageError: ``unknown_folder``.
        """
        if place.absolute:
            return place.file
        if not isinstance(self.folders, tuple):
            if place.folder is None or place.folder not in self.folders:
                raise ImageError(
                    "unknown_folder", f"{place.file}: {place.folder!r}; want one of {sorted(self.folders)}"
                )
            return join(self.folders[place.folder], place.file)
        if len(self.folders) > 1 and not is_url(self.folders[0]):
            for folder in self.folders:
                if Path(folder, place.file).is_file():
                    return join(folder, place.file)
        return join(self.folders[0], place.file)

    def size(self, place: Place) -> int | None:
        """Bytes of the image; -1 if it is not there; None behind a URL, where each answer would take a request."""
        if place.size is not None:
            return place.size
        try:
            path = self.path(place)
            return None if is_url(path) else os.stat(path).st_size
        except (OSError, ImageError):
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
            ImageError: ``image_missing``, ``unknown_folder``, or ``broken_image`` for what is no base64.
        """
        path = self.path(place)
        try:
            if place.size is not None:
                data = read_range(path, place.offset, place.size)
                return base64.b64decode(data, validate=True) if place.base64 else data
            if not is_url(path):
                return read_small(path)
            with open_file(path) as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ImageError("image_missing", f"{path} is not there") from None
        except InputError as error:
            if "no such object" in str(error):
                raise ImageError("image_missing", str(error)) from None
            raise
        except binascii.Error as error:
            raise ImageError("broken_image", f"not base64: {error}") from None
