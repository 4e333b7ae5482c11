"""Lists of samples to exclude, by shard and key, as written by dedup or by the user."""

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
"""Required columns; a list may have others, and rows may repeat. ``shard``: the shard's name
without ".tar".
"""


@dataclass(frozen=True)
class ExclusionList:
    """Samples to exclude: shard -> keys."""

    samples: Mapping[str, frozenset[str]]

    @classmethod
    def read(cls, path: str | Path) -> ExclusionList:
        """Read a list.

        Raises:
            InputError: no such file, not Parquet, or without the columns ``shard`` and ``key``.
        """
        return cls.of_table(read_table(path, SAMPLES))

    @classmethod
    def of_table(cls, table: pa.Table) -> ExclusionList:
        """Make a list of a table with the columns of SAMPLES."""
        samples: dict[str, set[str]] = {}
        for shard, key in zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True):
            samples.setdefault(shard, set()).add(key)
        return cls({shard: frozenset(keys) for shard, keys in samples.items()})

    def of(self, shard: str) -> frozenset[str]:
        """Keys to exclude of a shard, by its name."""
        return self.samples.get(shard, frozenset())

    def fingerprint_of(self, shard: str) -> dict[str, str]:
        """Part of the fingerprint of a shard's output; {} if none of its samples is listed."""
        return {"without": digest_json(sorted(self.of(shard)))} if self.of(shard) else {}

    def warn_of_unknown_ids(self, path: str, shards: Sequence[str]) -> None:
        """Warn if the list has samples, but none of these shards: it is probably for other shards."""
        if self.samples and not any(stem(shard) in self.samples for shard in shards):
            log.warning("%s lists samples of %s, none of these shards", path, ", ".join(sorted(self.samples)[:3]))
