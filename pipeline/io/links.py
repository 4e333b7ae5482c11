"""Images that lie inside of another shard: shards that hold labels only link to them (records.ImageLink)."""

from __future__ import annotations

import os

from pipeline.errors import InputError
from pipeline.io.files import file_size, read_range
from pipeline.io.paths import is_url
from pipeline.records import ImageLink


class LinkReader:
    """Reads linked images; each crawl shard is looked at once, to see that it is what it was."""

    def __init__(self) -> None:
        self._sizes: dict[str, int | None] = {}

    def read(self, shard: str, link: ImageLink) -> bytes:
        """The encoded image that a sample of ``shard`` links to.

        Raises:
            InputError: the crawl shard is gone, or is another than it was.
        """
        path = link.shard if is_url(link.shard) else os.path.join(os.path.dirname(shard), link.shard)
        if path not in self._sizes:
            self._sizes[path] = file_size(path)
        size = self._sizes[path]
        if size != link.shard_bytes:
            state = "is gone" if size is None else f"has {size:,} bytes now and had {link.shard_bytes:,}"
            raise InputError(f"{shard}: the crawl shard it links to, {path}, {state}; build the labels anew")
        return read_range(path, link.offset, link.bytes)
