"""Images that a training shard links to instead of holding them (:class:`pipeline.data.records.ImageLink`)."""

from __future__ import annotations

import os

from pydantic import ValidationError

from pipeline.data.records import ImageLink
from pipeline.errors import InputError
from pipeline.io.files import file_size, read_range
from pipeline.io.paths import is_url


class LinkReader:
    """Reads linked images, and sees that the shards they lie in are those that they were. Asks for each one's size once."""

    def __init__(self) -> None:
        self._sizes: dict[str, int | None] = {}

    def read(self, shard: str, data: bytes) -> tuple[str, bytes]:
        """(extension, encoded image) of a ``KEY.link`` in ``shard``.

        Raises:
            InputError: no link, or its shard is gone, or is another than it was.
        """
        try:
            link = ImageLink.model_validate_json(data)
        except ValidationError as error:
            raise InputError(f"{shard}: not a link to an image: {error.errors()[0]['msg']}") from None
        return link.extension, self.image(shard, link)

    def image(self, shard: str, link: ImageLink) -> bytes:
        """The encoded image that a sample of ``shard`` links to.

        Raises:
            InputError: its shard is gone, or is another than it was.
        """
        path = linked_path(shard, link)
        if path not in self._sizes:
            self._sizes[path] = file_size(path)
        size = self._sizes[path]
        if size != link.shard_bytes:
            state = "is gone" if size is None else f"has {size:,} bytes now and had {link.shard_bytes:,}"
            raise InputError(f"{shard}: the crawl shard it links to, {path}, {state}; build the labels anew")
        return read_range(path, link.offset, link.bytes)


def linked_path(shard: str, link: ImageLink) -> str:
    """Where the shard that ``shard`` links to lies: relative paths are relative to its folder."""
    return link.shard if is_url(link.shard) else os.path.join(os.path.dirname(shard), link.shard)
