"""Which of many hashed images are near-duplicates of a few: pairs, judged twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.dedup.hash_index import BandedIndex
from pipeline.dedup.perceptual_hash import MIRROR, WORDS, differing
from pipeline.io.paths import join
from pipeline.io.tables import read_table

BLOCK = 100_000
"""Images that are looked for at a time: bounds the index, at distance 11 to 0.2 GiB."""

WORD_COLUMNS = [f"hash_{i}" for i in range(WORDS)]


@dataclass(frozen=True)
class Rules:
    """distance: differing bits of the first 64 at most. details: of all 256. mirrored: images
    mirrored left to right count, too.
    """

    distance: int = 11
    details: int = 72
    mirrored: bool = False


@dataclass(frozen=True)
class Wanted:
    """Records to look for: words (n, WORDS) and digests (n,) of their images, keys (n,), and which
    part of which set each is of (n,), into ``parts``.
    """

    words: np.ndarray
    images: np.ndarray
    keys: pa.ChunkedArray
    part: np.ndarray
    parts: Sequence[tuple[str, str]]

    @classmethod
    def read(cls, folders: Sequence[tuple[str, str, Sequence[str]]]) -> Wanted:
        """folders: (set, folder of its hashes, parts)."""
        parts: list[tuple[str, str]] = []
        words, keys, numbers = [np.zeros((0, WORDS), np.uint64)], [pa.array([], pa.string())], []
        images = [np.zeros(0, np.uint64)]
        for name, folder, names in folders:
            for part in names:
                table = read_table(join(folder, f"{part}.parquet"), ["key", *WORD_COLUMNS, "image"])
                numbers.append(np.full(table.num_rows, len(parts)))
                parts.append((name, part))
                words.append(words_of(table))
                images.append(table["image"].to_numpy())
                keys.append(table["key"].combine_chunks())
        number = np.concatenate([np.zeros(0, np.int64), *numbers])
        return cls(np.concatenate(words), np.concatenate(images), pa.chunked_array(keys), number, parts)

    def distinct(self) -> dict[str, int]:
        """How many different images each set has."""
        numbers: dict[str, list[int]] = {}
        for number, (name, _) in enumerate(self.parts):
            numbers.setdefault(name, []).append(number)
        return {name: len(np.unique(self.images[np.isin(self.part, mine)])) for name, mine in numbers.items()}


def words_of(table: pa.Table) -> np.ndarray:
    """(n, WORDS) uint64 of a table of hashes."""
    return np.stack([table[name].to_numpy() for name in WORD_COLUMNS], 1)


@dataclass(frozen=True)
class Pairs:
    """row (p,) of the images searched in, and the wanted (p,) that each is like; differing bits of
    64 and of 256; candidates: how many there were within the distance, by the first 64 bits alone.
    """

    row: np.ndarray
    wanted: np.ndarray
    distance: np.ndarray
    details: np.ndarray
    mirrored: np.ndarray
    candidates: int


def blocks(wanted: Wanted, rules: Rules) -> Iterator[Block]:
    """The wanted images, some at a time."""
    for start in range(0, len(wanted.words), BLOCK):
        yield Block(wanted.words[start : start + BLOCK], start, rules)


class Block:
    """Some of the wanted images, indexed. words (n, WORDS); ``first``: the number of the first of
    them.
    """

    def __init__(self, words: np.ndarray, first: int, rules: Rules) -> None:
        self._n, self._first, self._rules = len(words), first, rules
        self._words = np.concatenate([words, words ^ MIRROR]) if rules.mirrored else words
        self._index = BandedIndex(self._words[:, 0], rules.distance)

    def search(self, words: np.ndarray) -> Pairs:
        """Pairs of hashes (m, WORDS) with wanted ones, by rising row and number; one that is alike
        both ways comes once.
        """
        row, place = self._index.search(words[:, 0])
        details = differing(words[row], self._words[place])
        close = np.flatnonzero(details <= self._rules.details)
        order = close[np.lexsort((place[close] >= self._n, details[close], place[close] % self._n, row[close]))]
        pair = row[order] * self._n + place[order] % self._n
        best = order[np.flatnonzero(np.diff(pair, prepend=-1))]
        row, at = row[best], place[best]
        return Pairs(
            row, at % self._n + self._first, differing(words[row, 0], self._words[at, 0]), details[best], at >= self._n,
            len(details),
        )  # fmt: skip
