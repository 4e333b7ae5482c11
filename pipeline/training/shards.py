"""Random access to the records of training shards, by the offsets in their tar headers."""

from __future__ import annotations

import json
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pydantic import ValidationError
from webdataset.tariterators import base_plus_ext

from pipeline.errors import InputError
from pipeline.images import IMAGE_EXTENSIONS
from pipeline.io.links import LinkReader
from pipeline.io.paths import is_url, stem
from pipeline.records import GroundingRecord, ImageLink

Entry = dict[str, tuple[int, int]]
"""Extension -> (offset, size) in the tar."""


def local_copy(shard: str) -> str:
    """A local path for a shard: itself, or a cached download of a URL."""
    if not is_url(shard):
        return shard
    import fsspec

    return fsspec.open_local(f"filecache::{shard}")


def index_shard(shard: str) -> list[tuple[str, Entry]]:
    """(key, entry) of every record of a training shard, in order.

    Raises:
        InputError: missing or damaged file, or a sample without image or record; training shards are our own, so
            damage here is not a crawl's noise but a fault to be told at once.
    """
    try:
        with tarfile.open(local_copy(shard), "r:") as tar:
            entries: dict[str, Entry] = {}
            for info in tar:
                key, extension = base_plus_ext(info.name)
                if key is not None:
                    entries.setdefault(key, {})[extension] = (info.offset_data, info.size)
    except FileNotFoundError:
        raise InputError(f"{shard}: no such file") from None
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{shard}: not a whole tar archive ({error})") from None
    for key, entry in entries.items():
        if "json" not in entry or not any(e in entry for e in (*IMAGE_EXTENSIONS, "link")):
            raise InputError(f"{shard}: {key} has {sorted(entry)}, want a json record and an image or a link to one")
    return list(entries.items())


class ShardSet:
    """The records of a list of shards, read by (shard, row). Keeps a bounded number of files open."""

    def __init__(self, shards: Sequence[str], max_open: int = 32) -> None:
        self.shards = list(shards)
        self._index = [index_shard(s) for s in self.shards]
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._max_open = max_open
        self._links = LinkReader()

    @property
    def counts(self) -> list[int]:
        """Records in each shard."""
        return [len(entries) for entries in self._index]

    def name(self, shard: int, row: int) -> str:
        """``stem/key`` of a record, for messages."""
        return f"{stem(self.shards[shard])}/{self._index[shard][row][0]}"

    def record(self, shard: int, row: int) -> GroundingRecord:
        """The labels of a record, without its image.

        Raises:
            InputError: the json is not a record; the message names shard, key and field.
        """
        data = self._read(shard, self._index[shard][row][1]["json"])
        try:
            return GroundingRecord.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"])
            raise InputError(f"{self.name(shard, row)}: {place}: {first['msg']}") from None

    def image(self, shard: int, row: int) -> bytes:
        """The encoded image of a record, from the shard itself or the crawl shard that it links to.

        Raises:
            InputError: the crawl shard is gone, or is another than it was.
        """
        entry = self._index[shard][row][1]
        if "link" in entry:
            link = ImageLink.model_validate_json(self._read(shard, entry["link"]))
            return self._links.read(self.shards[shard], link)
        extension = next(e for e in IMAGE_EXTENSIONS if e in entry)
        return self._read(shard, entry[extension])

    def _read(self, shard: int, place: tuple[int, int]) -> bytes:
        file = self._open.pop(shard, None)
        if file is None:
            file = open(local_copy(self.shards[shard]), "rb")  # noqa: SIM115 - kept open between reads
            while len(self._open) >= self._max_open:
                self._open.popitem(last=False)[1].close()
        self._open[shard] = file
        file.seek(place[0])
        return file.read(place[1])

    def forget_open_files(self) -> None:
        """Open files anew from here on: a forked process shares its parent's file positions."""
        self._open = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}  # workers open their own files


def read_label_spaces(shards: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Class names of the detection sets among the folders of ``shards``, by dataset name."""
    spaces: dict[str, tuple[str, ...]] = {}
    for folder in sorted({str(Path(s).parent) for s in shards if not is_url(s)}):
        for path in sorted(Path(folder).glob("*dataset.json")):
            card = json.loads(path.read_text())
            if card.get("label_space"):
                spaces[card["name"]] = tuple(card["label_space"])
    return spaces
