"""Random access to the records of training shards."""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import IO, TypeVar

from pydantic import ValidationError

from pipeline.data.image_links import LinkReader
from pipeline.data.records import GroundingRecord
from pipeline.data.remote_shards import read_exactly
from pipeline.data.shard_index import LINK, ByteRange, index_shard
from pipeline.errors import InputError, RunError
from pipeline.io.paths import is_url, stem
from pipeline.io.strict_model import problem_lines

T = TypeVar("T")


def rank_order(items: Sequence[T]) -> list[T]:
    """``items`` in an order that depends on this process's RANK in a distributed training.

    The processes share a cache: in different orders they seldom index the same shard at once,
    without waiting.
    """
    order, rank = list(items), int(os.environ.get("RANK") or 0)
    if rank:
        random.Random(rank).shuffle(order)
    return order


class ShardSet:
    """Records of shards by (shard number, row). At most ``max_open`` local files stay open."""

    def __init__(self, shards: Sequence[str], max_open: int = 32) -> None:
        self.shards = list(shards)
        indexes = {number: index_shard(self.shards[number]) for number in rank_order(range(len(self.shards)))}
        self._index = [indexes[number] for number in range(len(self.shards))]
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._max_open = max_open
        self._links = LinkReader()

    @property
    def counts(self) -> list[int]:
        """Number of records in each shard."""
        return [len(index) for index in self._index]

    def name(self, shard: int, row: int) -> str:
        """``stem/key`` of a record, for messages."""
        return f"{stem(self.shards[shard])}/{self._index[shard].key(row)}"

    def record(self, shard: int, row: int) -> GroundingRecord:
        """Labels of a record, without its image.

        Raises:
            InputError: the JSON is not a valid record; the message names shard, key and field.
        """
        data = self._read(shard, self._index[shard].record(row))
        try:
            return GroundingRecord.model_validate_json(data)
        except ValidationError as error:
            raise InputError(problem_lines(error, self.name(shard, row))[0]) from None

    def image(self, shard: int, row: int) -> bytes:
        """Encoded image of a record, from its shard or from the crawl shard that it links to.

        Raises:
            RunError: the shard or the linked crawl shard is missing or has changed (not an
                InputError, as the fault is not a single record's).
        """
        kind, content = self._index[shard].image(row)
        data = self._read(shard, content)
        if kind != LINK:
            return data
        try:
            return self._links.read(self.shards[shard], data)
        except InputError as error:
            raise RunError(str(error)) from None

    def _read(self, shard: int, content: ByteRange) -> bytes:
        path, (offset, size) = self.shards[shard], content
        if is_url(path):
            return read_exactly(path, offset, size)
        file = self._open.pop(shard, None)
        if file is None:
            try:
                file = open(path, "rb")  # noqa: SIM115 - kept open between reads
            except OSError as error:
                raise RunError(f"{path}: {error.strerror}; it was there at the start") from None
            while len(self._open) >= self._max_open:
                self._open.popitem(last=False)[1].close()
        self._open[shard] = file
        file.seek(offset)
        data = file.read(size)
        if len(data) != size:
            raise RunError(
                f"{path}: {len(data)} bytes from byte {offset} on, want {size}; has it been replaced since the start?"
            )
        return data

    def forget_open_files(self) -> None:
        """Reopen files, in a forked process, which shares its parent's file positions."""
        self._open = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}  # workers open their own files
