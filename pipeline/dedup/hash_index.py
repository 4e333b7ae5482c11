"""Hashes within a few bits of one another, found without comparing all with all (multi-index hashing, Norouzi et al., CVPR 2012).

A hash is cut into bands. Two hashes that differ in ``distance`` bits or fewer have a band in which they differ in
``distance // BANDS`` at most (pigeonholes); every indexed hash stands in its bands' tables under all values that near. A search is then
one look into each table, and its time is a sum over the hashes searched for.
"""

from __future__ import annotations

import numpy as np

from pipeline.dedup.perceptual_hash import BAND_BITS, BANDS, differing

TOGETHER = 1 << 20
"""Candidates that are compared at a time."""


class BandedIndex:
    """hashes: (n,) uint64. Takes 2.2 kB a hash at distance 11, 0.3 kB at 7, 16 bytes at 3; three times that while it is made."""

    def __init__(self, hashes: np.ndarray, distance: int) -> None:
        self._hashes, self._distance = hashes.astype(np.uint64), distance
        radius, left = divmod(distance, BANDS)
        # were every band further off than this, their bits would add up to distance + 1 or more
        radii = [radius if band <= left else radius - 1 for band in range(BANDS)]
        self._tables = {band: self._table(band, r) for band, r in enumerate(radii) if r >= 0}

    def _table(self, band: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """(where each value's rows begin, the rows) of the hashes that have the value in their band, or one that near."""
        near = np.arange(1 << BAND_BITS, dtype=np.uint16)
        near = near[np.bitwise_count(near) <= radius]
        values = (_band(self._hashes, band)[:, None] ^ near).ravel()
        rows = np.argsort(values, kind="stable").astype(np.uint32 if len(values) < 1 << 32 else np.uint64)
        starts = np.concatenate([[0], np.cumsum(np.bincount(values, minlength=1 << BAND_BITS))])
        return starts, rows // len(near)

    def search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every (query, indexed hash) within the distance, by number, in rising order. queries: (m,) uint64."""
        found = [np.zeros(0, np.int64)]
        for band, (starts, rows) in self._tables.items():
            values = _band(queries, band)
            first, counts = starts[values], starts[values.astype(np.int64) + 1] - starts[values]
            ends = np.cumsum(counts)
            low = 0
            while low < len(queries):
                done = ends[low - 1] if low else 0
                high = max(low + 1, int(np.searchsorted(ends, done + TOGETHER, side="right")))
                some = counts[low:high]
                query = np.repeat(np.arange(low, high), some)
                within = np.arange(len(query)) - np.repeat(ends[low:high] - some - done, some)
                indexed = rows[np.repeat(first[low:high], some) + within]
                near = differing(queries[query], self._hashes[indexed]) <= self._distance
                found.append(query[near] * max(len(self._hashes), 1) + indexed[near].astype(np.int64))
                low = high
        pairs = np.unique(np.concatenate(found))
        return np.divmod(pairs, max(len(self._hashes), 1))


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    return ((hashes >> np.uint64(BAND_BITS * band)) & np.uint64((1 << BAND_BITS) - 1)).astype(np.uint16)
