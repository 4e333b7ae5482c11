"""Search for near-duplicates by the first 64 bits of the hash, and then by all 256."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.dedup.hash_index import BandedIndex
from pipeline.dedup.perceptual_hash import HASHES, MIRROR, WORDS, hamming
from pipeline.io.paths import join
from pipeline.io.tables import read_table

BLOCK = 100_000
"""Query images in one index, which bounds its memory, at distance 11 to 0.2 GiB."""

WORD_COLUMNS = [f"hash_{i}" for i in range(WORDS)]


@dataclass(frozen=True)
class MatchRules:
    """Criteria of a match.

    distance: maximum Hamming distance of the first 64 bits. details: of all 256 bits. mirrored:
    horizontally mirrored images match too.
    """

    distance: int = 11
    details: int = 72
    mirrored: bool = False


@dataclass(frozen=True)
class QueryImages:
    """Records to search for.

    words: hashes (n, WORDS). images: digests of the encoded images (n,). keys: (n,). part: index
    into parts (n,). parts: (set, part).
    """

    words: np.ndarray
    images: np.ndarray
    keys: pa.ChunkedArray
    part: np.ndarray
    parts: Sequence[tuple[str, str]]

    @classmethod
    def read(cls, folders: Sequence[tuple[str, str, Sequence[str]]]) -> QueryImages:
        """Read the hashes of sets. folders: (set, folder of its hashes, parts)."""
        columns = pa.schema([HASHES.field(name) for name in ("key", *WORD_COLUMNS, "image")])
        parts = [(name, part) for name, _, names in folders for part in names]
        paths = [join(folder, f"{part}.parquet") for _, folder, names in folders for part in names]
        tables = [read_table(path, columns) for path in paths]
        table = pa.concat_tables([columns.empty_table(), *tables])
        numbers = np.repeat(np.arange(len(parts)), np.array([t.num_rows for t in tables], np.int64))
        return cls(words_of(table), table["image"].to_numpy(), table["key"], numbers, parts)

    def distinct(self) -> dict[str, int]:
        """Number of distinct images by set."""
        numbers: dict[str, list[int]] = {}
        for number, (name, _) in enumerate(self.parts):
            numbers.setdefault(name, []).append(number)
        return {name: len(np.unique(self.images[np.isin(self.part, parts)])) for name, parts in numbers.items()}


def words_of(table: pa.Table) -> np.ndarray:
    """Hashes (n, WORDS) uint64 of a table with the columns of HASHES."""
    return np.stack([table[name].to_numpy() for name in WORD_COLUMNS], 1)


COLUMNS = ("row", "wanted", "distance", "details", "mirrored")


@dataclass(frozen=True)
class Pairs:
    """Matches, one an index of each array.

    Attributes:
        row: (p,) rows of the searched hashes.
        wanted: (p,) numbers of the matching query images.
        distance: (p,) Hamming distances of the first 64 bits.
        details: (p,) of all 256 bits.
        mirrored: (p,) whether the match is with the mirrored query.
        candidates: number of pairs within the distance by the first 64 bits.
    """

    row: np.ndarray
    wanted: np.ndarray
    distance: np.ndarray
    details: np.ndarray
    mirrored: np.ndarray
    candidates: int

    def only(self, chosen: np.ndarray) -> Pairs:
        """Those of a mask or of indices."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in COLUMNS})

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """Those of several blocks, by row and query number."""
        columns = {name: np.concatenate([getattr(some, name) for some in parts]) for name in COLUMNS}
        every = cls(**columns, candidates=sum(some.candidates for some in parts))
        return every.only(np.lexsort((every.wanted, every.row)))


def blocks(wanted: QueryImages, rules: MatchRules) -> Iterator[Block]:
    """Divide the query images into indexed blocks."""
    for start in range(0, len(wanted.words), BLOCK):
        yield Block(wanted.words[start : start + BLOCK], start, rules)


class Block:
    """Index of some of the query images.

    words: their hashes (n, WORDS). first: number of the first of them.
    """

    def __init__(self, words: np.ndarray, first: int, rules: MatchRules) -> None:
        self._n, self._first, self._rules = len(words), first, rules
        self._words = np.concatenate([words, words ^ MIRROR]) if rules.mirrored else words
        self._index = BandedIndex(self._words[:, 0], rules.distance)

    def search(self, words: np.ndarray) -> Pairs:
        """Matches of hashes (m, WORDS), sorted by row and query number; one that matches both
        upright and mirrored is given once.
        """
        row, query = self._index.search(words[:, 0])
        details = hamming(words[row], self._words[query])
        close = np.flatnonzero(details <= self._rules.details)
        order = close[np.lexsort((query[close] >= self._n, details[close], query[close] % self._n, row[close]))]
        pair = row[order] * self._n + query[order] % self._n
        best = order[np.flatnonzero(np.diff(pair, prepend=-1))]
        row, query = row[best], query[best]
        return Pairs(
            row, query % self._n + self._first, hamming(words[row, 0], self._words[query, 0]), details[best],
            query >= self._n, len(details),
        )  # fmt: skip
