"""Exact counts of many texts by hash; the texts themselves are kept only for the most frequent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.filtering.phrases import text_hashes

MERGE_ROWS = 1 << 19
"""Number of added texts after which they are merged."""


class TextCounts:
    """Exact counts by 64-bit hash, about 50 bytes per distinct text at the peak; the ``kept`` most
    frequent texts.

    A text that is among the most frequent at the end was among the most frequent of the texts so
    far when it was last added, so it was kept then and since. Ties are broken by the hash, so the
    choice does not depend on the order.
    """

    def __init__(self, kept: int = 1 << 16) -> None:
        self._kept = kept
        self._hashes, self._counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._texts: dict[int, str] = {}
        self._pending: list[tuple[np.ndarray, np.ndarray, Sequence[str]]] = []
        self._rows = 0

    def add(self, texts: Sequence[str], counts: np.ndarray) -> None:
        """Add counts (n,) of distinct texts (n,)."""
        self._pending.append((text_hashes(pa.array(texts, pa.string())), counts, texts))
        self._rows += len(texts)
        if self._rows >= MERGE_ROWS:
            self._merge()

    def _merge(self) -> None:
        pending, self._pending, self._rows = self._pending, [], 0
        hashes = np.concatenate([self._hashes, *(h for h, _, _ in pending)])
        counts = np.concatenate([self._counts, *(c for _, c, _ in pending)])
        order = np.argsort(hashes, kind="stable")
        hashes, counts = hashes[order], counts[order]
        starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(hashes) else order
        self._hashes, self._counts = hashes[starts], np.add.reduceat(counts, starts) if len(starts) else counts
        for new, _, texts in pending:
            self._texts.update(zip(new.tolist(), texts, strict=True))
        if len(self._texts) > self._kept:
            self._texts = {h: self._texts[h] for h, _ in self._most_frequent(self._kept)}

    def _most_frequent(self, n: int) -> list[tuple[int, int]]:
        """(hash, count) of the ``n`` most frequent texts that are kept."""
        hashes = np.fromiter(self._texts, np.uint64, len(self._texts))
        counts = self._counts[np.searchsorted(self._hashes, hashes)]
        best = np.lexsort((hashes, -counts))[:n]
        return list(zip(hashes[best].tolist(), counts[best].tolist(), strict=True))

    @property
    def counts(self) -> np.ndarray:
        """(n,) of all distinct texts."""
        self._merge()
        return self._counts

    def top(self, n: int) -> list[tuple[str, int]]:
        """(text, count) of the most frequent texts, at most ``kept``, by descending count, then
        alphabetically.
        """
        self._merge()
        rows = [(self._texts[h], count) for h, count in self._most_frequent(n)]
        return sorted(rows, key=lambda row: (-row[1], row[0]))
