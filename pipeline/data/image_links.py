"""Reader of images that training shards link to."""

from __future__ import annotations

import os

from pydantic import ValidationError

from pipeline.data.records import ImageLink
from pipeline.errors import InputError
from pipeline.io.files import file_size, read_range
from pipeline.io.paths import is_url


class LinkReader:
    """Reads linked images, and checks once that each linked shard has its stated size."""

    def __init__(self) -> None:
        self._sizes: dict[str, int | None] = {}

    def read(self, shard: str, data: bytes) -> bytes:
        """Encoded image of a link in ``shard``; ``data``: content of its ``KEY.link``.

        Raises:
            InputError: invalid link, or the linked shard is missing or has changed.
        """
        try:
            link = ImageLink.model_validate_json(data)
        except ValidationError as error:
            raise InputError(f"{shard}: not a link to an image: {error.errors()[0]['msg']}") from None
        return self.image(shard, link)

    def image(self, shard: str, link: ImageLink) -> bytes:
        """Encoded image that a sample of ``shard`` links to.

        Raises:
            InputError: the linked shard is missing or has changed.
        """
        path = linked_path(shard, link)
        if path not in self._sizes:
            self._sizes[path] = file_size(path)
        size = self._sizes[path]
        if size != link.shard_bytes:
            state = "is missing" if size is None else f"has {size:,} bytes now and had {link.shard_bytes:,}"
            raise InputError(f"{shard}: the crawl shard it links to, {path}, {state}; run build-shards again")
        return read_range(path, link.offset, link.bytes)


def linked_path(shard: str, link: ImageLink) -> str:
    """Path of the linked shard; a relative path in a link is relative to the folder of ``shard``."""
    return link.shard if is_url(link.shard) else os.path.join(os.path.dirname(shard), link.shard)
