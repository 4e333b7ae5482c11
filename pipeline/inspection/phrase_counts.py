"""How often each of many texts occurs, without keeping the texts: only the most frequent ones are needed in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.filtering.phrases import text_hashes

TOGETHER = 1 << 19
"""Texts that wait to be added up at a time."""


class TextCounts:
    """Exact counts by 64-bit hash, some 50 bytes a distinct text at the peak; words for the ``kept`` most frequent.

    A text that is among the most frequent at the end was so when it was last seen, among those seen by then; so its words were
    at hand, and stayed. Of equal counts the lower hash comes first, so that the choice is the same in any order.
    """

    def __init__(self, kept: int = 1 << 16) -> None:
        self._kept = kept
        self._hashes, self._counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._words: dict[int, str] = {}
        self._waiting: list[tuple[np.ndarray, np.ndarray, Sequence[str]]] = []
        self._rows = 0

    def add(self, texts: Sequence[str], counts: np.ndarray) -> None:
        """Count distinct texts (n,) so many times (n,)."""
        self._waiting.append((text_hashes(pa.array(texts, pa.string())), counts, texts))
        self._rows += len(texts)
        if self._rows >= TOGETHER:
            self._merge()

    def _merge(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        hashes = np.concatenate([self._hashes, *(h for h, _, _ in waiting)])
        counts = np.concatenate([self._counts, *(c for _, c, _ in waiting)])
        order = np.argsort(hashes, kind="stable")
        hashes, counts = hashes[order], counts[order]
        starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(hashes) else order
        self._hashes, self._counts = hashes[starts], np.add.reduceat(counts, starts) if len(starts) else counts
        for new, _, texts in waiting:
            self._words.update(zip(new.tolist(), texts, strict=True))
        if len(self._words) > self._kept:
            known = np.fromiter(self._words, np.uint64, len(self._words))
            best = np.lexsort((known, -self._count_of(known)))[: self._kept]
            self._words = {h: self._words[h] for h in known[best].tolist()}

    def _count_of(self, hashes: np.ndarray) -> np.ndarray:
        return self._counts[np.searchsorted(self._hashes, hashes)]

    @property
    def counts(self) -> np.ndarray:
        """(n,) of all distinct texts."""
        self._merge()
        return self._counts

    def top(self, n: int) -> list[tuple[str, int]]:
        """The most frequent texts, ``kept`` at most, by falling count and by the alphabet."""
        self._merge()
        known = np.fromiter(self._words, np.uint64, len(self._words))
        counts = self._count_of(known)
        best = np.lexsort((known, -counts))[:n]
        rows = [(self._words[h], c) for h, c in zip(known[best].tolist(), counts[best].tolist(), strict=True)]
        return sorted(rows, key=lambda row: (-row[1], row[0]))
