"""Search for hashes within a Hamming distance (multi-index hashing, Norouzi et al., CVPR 2012).

Hashes are split into bands. Two hashes that differ in at most ``distance`` bits differ in at most
``distance // BANDS`` bits of some band (pigeonhole principle). Each band's table has every indexed
hash under all values within that radius, so that a query needs one lookup per table.
"""

from __future__ import annotations

import numpy as np

from pipeline.dedup.perceptual_hash import BAND_BITS, BANDS, hamming

CANDIDATES_AT_ONCE = 1 << 20
"""Number of candidates compared in one step, to bound the memory."""


class BandedIndex:
    """Index of hashes (n,) uint64.

    Takes 2.2 kB per hash at distance 11, 0.3 kB at 7, 16 bytes at 3; three times as much during
    construction.
    """

    def __init__(self, hashes: np.ndarray, distance: int) -> None:
        self._hashes, self._distance = hashes.astype(np.uint64), distance
        radius, remainder = divmod(distance, BANDS)
        # if every band differed in more bits than this, the sum would exceed the distance
        radii = [radius if band <= remainder else radius - 1 for band in range(BANDS)]
        self._tables = {band: self._table(band, r) for band, r in enumerate(radii) if r >= 0}

    def _table(self, band: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
        """(start of each value's rows, rows of hashes with a band within ``radius`` of it)."""
        near = np.arange(1 << BAND_BITS, dtype=np.uint16)
        near = near[np.bitwise_count(near) <= radius]
        values = (_band(self._hashes, band)[:, None] ^ near).ravel()
        rows = np.argsort(values, kind="stable").astype(np.uint32 if len(values) < 1 << 32 else np.uint64)
        starts = np.concatenate([[0], np.cumsum(np.bincount(values, minlength=1 << BAND_BITS))])
        return starts, rows // len(near)

    def search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs within the distance, as (query indices, indexed hash indices), sorted. queries:
        (m,) uint64.
        """
        pairs = [np.zeros(0, np.int64)]
        for band, (starts, rows) in self._tables.items():
            values = _band(queries, band)
            first, counts = starts[values], starts[values.astype(np.int64) + 1] - starts[values]
            ends = np.cumsum(counts)
            low = 0
            while low < len(queries):
                done = ends[low - 1] if low else 0
                high = max(low + 1, int(np.searchsorted(ends, done + CANDIDATES_AT_ONCE, side="right")))
                some = counts[low:high]
                query = np.repeat(np.arange(low, high), some)
                within = np.arange(len(query)) - np.repeat(ends[low:high] - some - done, some)
                indexed = rows[np.repeat(first[low:high], some) + within]
                near = hamming(queries[query], self._hashes[indexed]) <= self._distance
                pairs.append(query[near] * max(len(self._hashes), 1) + indexed[near].astype(np.int64))
                low = high
        return np.divmod(np.unique(np.concatenate(pairs)), max(len(self._hashes), 1))


def _band(hashes: np.ndarray, band: int) -> np.ndarray:
    return ((hashes >> np.uint64(BAND_BITS * band)) & np.uint64((1 << BAND_BITS) - 1)).astype(np.uint16)
