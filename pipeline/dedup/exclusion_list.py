"""Lists of samples to leave out, by shard and key: what dedup writes, or anybody's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.io.hashing import digest_json
from pipeline.io.paths import stem
from pipeline.io.tables import read_table

log = logging.getLogger("glip_self_train")

SAMPLES = pa.schema([pa.field("shard", pa.string(), nullable=False), pa.field("key", pa.string(), nullable=False)])
"""A list may have other columns beside these, and name a sample more than once. ``shard`` is a shard's name without ".tar"."""


@dataclass(frozen=True)
class Without:
    """shard -> keys of its samples that are to be left out."""

    samples: Mapping[str, frozenset[str]]

    @classmethod
    def read(cls, path: str | Path) -> Without:
        """Read a list.

        Raises:
            InputError: no such file, not Parquet, or without the columns ``shard`` and ``key``.
        """
        return cls.of_table(read_table(path, SAMPLES))

    @classmethod
    def of_table(cls, table: pa.Table) -> Without:
        """The samples of a table with the columns of SAMPLES."""
        found: dict[str, set[str]] = {}
        for shard, key in zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True):
            found.setdefault(shard, set()).add(key)
        return cls({shard: frozenset(keys) for shard, keys in found.items()})

    def of(self, shard: str) -> frozenset[str]:
        """The keys of one shard, by its name."""
        return self.samples.get(shard, frozenset())

    def fingerprint_of(self, shard: str) -> dict[str, str]:
        """For the fingerprint of what is made of a shard: nothing if the list has none of it, so that it stays as it is."""
        return {"without": digest_json(sorted(self.of(shard)))} if self.of(shard) else {}

    def warn_of_unknown_ids(self, path: str, shards: Sequence[str]) -> None:
        """Tell if a list names samples, but none of these shards: it was probably made of others."""
        if self.samples and not any(stem(shard) in self.samples for shard in shards):
            log.warning("%s names samples of %s, none of these shards", path, ", ".join(sorted(self.samples)[:3]))
