"""Distinct phrase texts of a store, and their counts, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.filtering.nms import run_lengths
from pipeline.io.tables import footer, read_table, required_columns

COUNTS = pa.schema(required_columns(pa.string(), "phrase") + required_columns(pa.int64(), "mentions", "kept"))
"""``phrase``: in lower case. ``mentions``: of captions, with a region. ``kept``: regions kept."""


def text_hashes(texts: pa.Array) -> np.ndarray:
    """(n,) uint64 hashes of texts, portable; collisions are unlikely even among 60 million texts."""
    return np.frombuffer(b"".join(blake2b(t.encode(), digest_size=8).digest() for t in texts.to_pylist()), "<u8")


class DistinctTexts:
    """Tracks which of up to 64 filters each distinct text passed, in about 30 bytes per text."""

    def __init__(self) -> None:
        self._hashes, self._bits = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows = 0

    def add(self, hashes: np.ndarray, bits: np.ndarray) -> None:
        """Add texts: hashes (n,) uint64, and the filters they passed as bits (n,) uint64."""
        self._pending.append((hashes, bits))
        self._rows += len(hashes)
        if self._rows > max(len(self._hashes), 1 << 20):
            self._merge()

    def _merge(self) -> None:
        hashes = np.concatenate([self._hashes, *(h for h, _ in self._pending)])
        bits = np.concatenate([self._bits, *(b for _, b in self._pending)])
        self._pending, self._rows = [], 0
        order = np.argsort(hashes, kind="stable")
        hashes, bits = hashes[order], bits[order]
        starts, _ = run_lengths(hashes)
        self._hashes, self._bits = hashes[starts], np.bitwise_or.reduceat(bits, starts) if len(starts) else bits

    def counts(self, filters: int) -> list[int]:
        """Number of distinct texts that passed each of the first ``filters`` filters."""
        self._merge()
        return [int(((self._bits >> np.uint64(i)) & np.uint64(1)).sum()) for i in range(filters)]


@dataclass(frozen=True)
class PhraseCounts:
    """Output of count-phrases. ``hashes``: (n,) of the texts from ``min_count`` on, sorted."""

    hashes: np.ndarray
    mentions: np.ndarray
    kept: np.ndarray
    min_count: int
    rules: str

    def of(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(n,) mentions and (n,) kept regions of texts in lower case; 0 below ``min_count``."""
        hashes = text_hashes(texts)
        if not len(self.hashes):
            return np.zeros(len(hashes), np.int64), np.zeros(len(hashes), np.int64)
        rows = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        counted = self.hashes[rows] == hashes
        return np.where(counted, self.mentions[rows], 0), np.where(counted, self.kept[rows], 0)


def read_counts(path: str | Path) -> PhraseCounts:
    """Read a file of phrase counts.

    Raises:
        InputError: no such file, or not written by count-phrases.
    """
    table = read_table(path, COUNTS)
    notes = footer(table.schema)
    if "min_count" not in notes:
        raise InputError(f"{path}: want the file that count-phrases wrote")
    hashes = text_hashes(table["phrase"])
    order = np.argsort(hashes)
    mentions, kept = (table[c].to_numpy()[order] for c in ("mentions", "kept"))
    return PhraseCounts(hashes[order], mentions, kept, int(notes["min_count"]), notes["rules"])


def uniform(name: str, phrase_row: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(n,) pseudo-random numbers in [0, 1) of regions by shard, phrase row and rank (splitmix64)."""
    seed = np.frombuffer(blake2b(name.encode(), digest_size=8).digest(), "<u8")[0]
    x = seed + (phrase_row.astype(np.uint64) << np.uint64(16)) + rank.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53)
