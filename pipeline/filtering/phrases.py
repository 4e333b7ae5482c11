"""Phrase texts of a whole store: distinct ones, and how often each is mentioned and boxed, in
bounded memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.io.hashing import digest_file
from pipeline.io.tables import footer, read_table

COUNTS = pa.schema(
    [
        pa.field("phrase", pa.string(), nullable=False),
        pa.field("mentions", pa.int64(), nullable=False),
        pa.field("kept", pa.int64(), nullable=False),
    ]
)
"""Phrase texts in lower case: ``mentions`` counts captions' phrases with a region, ``kept`` regions
that the rules keep.
"""


def text_hashes(texts: pa.Array) -> np.ndarray:
    """(n,) uint64 of texts, the same on every machine; of 60 million texts hardly two share one."""
    return np.frombuffer(b"".join(blake2b(t.encode(), digest_size=8).digest() for t in texts.to_pylist()), "<u8")


class DistinctTexts:
    """Which of up to 64 filters each distinct text passed; some 30 bytes a text at the peak."""

    def __init__(self) -> None:
        self._hashes, self._bits = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows = 0

    def add(self, hashes: np.ndarray, bits: np.ndarray) -> None:
        """Texts by hash and, bit by bit, the filters they passed; (n,) uint64 both."""
        self._waiting.append((hashes, bits))
        self._rows += len(hashes)
        if self._rows > max(len(self._hashes), 1 << 20):
            self._merge()

    def _merge(self) -> None:
        hashes = np.concatenate([self._hashes, *(h for h, _ in self._waiting)])
        bits = np.concatenate([self._bits, *(b for _, b in self._waiting)])
        self._waiting, self._rows = [], 0
        order = np.argsort(hashes, kind="stable")
        hashes, bits = hashes[order], bits[order]
        starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(hashes) else order
        self._hashes, self._bits = hashes[starts], np.bitwise_or.reduceat(bits, starts) if len(starts) else bits

    def counts(self, filters: int) -> list[int]:
        """How many distinct texts passed each of the first ``filters`` filters."""
        self._merge()
        return [int(((self._bits >> np.uint64(i)) & np.uint64(1)).sum()) for i in range(filters)]


@dataclass(frozen=True)
class PhraseCounts:
    """What count-phrases wrote, ready to be asked. ``hashes`` (n,) sorted; texts rarer than its
    limit are not in it.
    """

    hashes: np.ndarray
    mentions: np.ndarray
    kept: np.ndarray
    min_count: int
    rules: str

    def of(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(n,) mentions and kept regions of texts in lower case; 0 for those that are not counted."""
        hashes = text_hashes(texts)
        if not len(self.hashes):
            return np.zeros(len(hashes), np.int64), np.zeros(len(hashes), np.int64)
        place = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        found = self.hashes[place] == hashes
        return np.where(found, self.mentions[place], 0), np.where(found, self.kept[place], 0)


def read_counts(path: str | Path) -> PhraseCounts:
    """Read a file of phrase counts; remembered as long as its content is the same.

    Raises:
        InputError: no such file, or not one that count-phrases wrote.
    """
    return _read_counts(str(path), digest_file(path))


@lru_cache(maxsize=1)
def _read_counts(path: str, digest: str) -> PhraseCounts:
    table = read_table(path, COUNTS)
    notes = footer(table.schema)
    if "min_count" not in notes:
        raise InputError(f"{path}: want the file that count-phrases wrote")
    hashes = text_hashes(table["phrase"])
    order = np.argsort(hashes)
    mentions, kept = (table[c].to_numpy()[order] for c in ("mentions", "kept"))
    return PhraseCounts(hashes[order], mentions, kept, int(notes["min_count"]), notes["rules"])


def uniform(name: str, phrase_row: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(n,) in [0, 1): a region's own lot, a function of its shard's name, phrase row and rank
    (splitmix64's mixing).
    """
    seed = np.frombuffer(blake2b(name.encode(), digest_size=8).digest(), "<u8")[0]
    x = seed + (phrase_row.astype(np.uint64) << np.uint64(16)) + rank.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
