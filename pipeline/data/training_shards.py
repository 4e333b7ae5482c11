"""Random access to the records of training shards, by their indexes."""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import IO, TypeVar

from pydantic import ValidationError

from pipeline.data.image_links import LinkReader
from pipeline.data.records import GroundingRecord
from pipeline.data.remote_shards import read_place
from pipeline.data.shard_index import LINK, Place, index_shard
from pipeline.errors import InputError, RunError
from pipeline.io.paths import is_url, stem

T = TypeVar("T")


def own_order(items: Sequence[T]) -> list[T]:
    """``items`` in an order of this process among those of a training that is started by a launcher.

    What one finds out about a shard and remembers, the others need not. They wait for nothing, and seldom do the same at once.
    """
    mixed, rank = list(items), int(os.environ.get("RANK") or 0)
    if rank:
        random.Random(rank).shuffle(mixed)
    return mixed


class ShardSet:
    """The records of a list of shards, read by (shard, row). Keeps a bounded number of files open; behind a URL it asks for ranges."""

    def __init__(self, shards: Sequence[str], max_open: int = 32) -> None:
        self.shards = list(shards)
        made = {number: index_shard(self.shards[number]) for number in own_order(range(len(self.shards)))}
        self._index = [made[number] for number in range(len(self.shards))]
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._max_open = max_open
        self._links = LinkReader()

    @property
    def counts(self) -> list[int]:
        """Records in each shard."""
        return [len(entries) for entries in self._index]

    def name(self, shard: int, row: int) -> str:
        """``stem/key`` of a record, for messages."""
        return f"{stem(self.shards[shard])}/{self._index[shard].key(row)}"

    def record(self, shard: int, row: int) -> GroundingRecord:
        """The labels of a record, without its image.

        Raises:
            InputError: the json is not a record; the message names shard, key and field.
        """
        data = self._read(shard, self._index[shard].record(row))
        try:
            return GroundingRecord.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"])
            raise InputError(f"{self.name(shard, row)}: {place}: {first['msg']}") from None

    def image(self, shard: int, row: int) -> bytes:
        """The encoded image of a record, from the shard itself or the crawl shard that it links to.

        Raises:
            RunError: the shard, or the crawl shard that it links to, is gone, or is another than it was. It is no one record's fault.
        """
        kind, place = self._index[shard].image(row)
        data = self._read(shard, place)
        if kind != LINK:
            return data
        try:
            return self._links.read(self.shards[shard], data)[1]
        except InputError as error:
            raise RunError(str(error)) from None

    def _read(self, shard: int, place: Place) -> bytes:
        path = self.shards[shard]
        if is_url(path):
            return read_place(path, *place)
        file = self._open.pop(shard, None)
        if file is None:
            try:
                file = open(path, "rb")  # noqa: SIM115 - kept open between reads
            except OSError as error:
                raise RunError(f"{path}: {error.strerror}; it was there at the start") from None
            while len(self._open) >= self._max_open:
                self._open.popitem(last=False)[1].close()
        self._open[shard] = file
        file.seek(place[0])
        data = file.read(place[1])
        if len(data) != place[1]:
            raise RunError(
                f"{path}: {len(data)} bytes from byte {place[0]} on, want {place[1]}; has it been replaced since the start?"
            )
        return data

    def forget_open_files(self) -> None:
        """Open files anew from here on: a forked process shares its parent's file positions."""
        self._open = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}  # workers open their own files
