"""Order of records in the endless stream that training reads.

The record at a position is a function of (seed, position): it does not depend on workers, processes
or restarts, and resuming at step N is arithmetic. Shards are shuffled in blocks, so that a large
set is still read almost sequentially.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from pipeline.errors import InputError

T = TypeVar("T")
PERIOD = 240
"""Positions after which a mixture's shares are exact (to one part in PERIOD)."""


def generator(*parts: int | str) -> np.random.Generator:
    """A random generator seeded by its arguments, independent of platform and process."""
    return np.random.default_rng([p if isinstance(p, int) else zlib.crc32(p.encode()) for p in parts])


class PicklableCache(Generic[T]):
    """``lru_cache`` of a function that can be pickled; it is empty after unpickling."""

    def __init__(self, make: Callable[..., T], size: int) -> None:
        self._make, self._size = make, size
        self._value = lru_cache(maxsize=size)(make)

    def __call__(self, *arguments: Hashable) -> T:
        return self._value(*arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return PicklableCache, (self._make, self._size)


class SourceOrder:
    """The order of one source's records: shuffled by shards, then within blocks of shards.

    Args:
        counts: records in each shard.
        seed, name: seed of the shuffling.
        block: shards whose records are shuffled together, and that are open at a time.

    Raises:
        InputError: no records.
    """

    def __init__(self, counts: Sequence[int], *, seed: int, name: str, block: int = 16) -> None:
        self.total = int(sum(counts))
        if self.total == 0:
            raise InputError(f"source {name}: its shards hold no records")
        self._counts = np.asarray(counts, dtype=np.int64)
        self._ends = np.cumsum(self._counts)
        self._seed, self._name, self._block = seed, name, block
        self._epoch = PicklableCache(self._make_epoch, 2)
        self._rows = PicklableCache(self._make_rows, 2)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        shards = generator(self._seed, self._name, "shards", epoch).permutation(len(self._counts))
        sizes = np.add.reduceat(self._counts[shards], np.arange(0, len(shards), self._block))
        return shards, np.concatenate([[0], np.cumsum(sizes)])

    def _make_rows(self, epoch: int, block: int) -> np.ndarray:
        shards = self._epoch(epoch)[0][block * self._block : (block + 1) * self._block]
        rows = np.concatenate([np.stack([np.full(self._counts[s], s), np.arange(self._counts[s])], 1) for s in shards])
        return rows[generator(self._seed, self._name, "rows", epoch, block).permutation(len(rows))]

    def locate(self, n: int) -> tuple[int, int]:
        """(shard, row in the shard) of the source's ``n``-th record in training order."""
        epoch, position = divmod(n, self.total)
        starts = self._epoch(epoch)[1]
        block = int(np.searchsorted(starts, position, side="right")) - 1
        shard, row = self._rows(epoch, block)[position - starts[block]]
        return int(shard), int(row)

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """(shard, row in the shard) of a record drawn uniformly.

        Computed from the shards' counts: random access to the shuffled order would shuffle a block
        of shards each time.
        """
        number = int(rng.integers(self.total))
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, int(number - self._ends[shard] + self._counts[shard])


class Mixture:
    """The source of each position of the stream; shares are exact over every PERIOD positions.

    Raises:
        InputError: shares and sources differ, or a share is not positive or below 1 / PERIOD.
    """

    def __init__(self, shares: Mapping[str, float], sources: Sequence[str], *, seed: int) -> None:
        shares = dict(shares) or dict.fromkeys(sources, 1.0)
        if set(shares) != set(sources):
            raise InputError(f"mixture names {sorted(shares)}, but the sources are {sorted(sources)}")
        if any(share <= 0 for share in shares.values()):
            raise InputError(f"mixture {shares}: every share must be above 0")
        self.sources = sorted(shares)
        exact = np.array([shares[s] for s in self.sources], dtype=np.float64)
        exact = exact / exact.sum() * PERIOD
        counts = np.floor(exact).astype(int)
        for i in np.argsort(counts - exact, kind="stable")[: PERIOD - counts.sum()]:
            counts[i] += 1
        if (counts == 0).any():
            raise InputError(f"mixture {shares}: a share below 1/{PERIOD} of the whole would never be drawn")
        self._counts, self._seed = counts, seed
        self._pattern = PicklableCache(self._make_pattern, 4)

    def _make_pattern(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        ids = generator(self._seed, "mixture", period).permutation(
            np.repeat(np.arange(len(self._counts)), self._counts)
        )
        nth = np.zeros(PERIOD, dtype=np.int64)
        for s in range(len(self._counts)):
            nth[ids == s] = np.arange(self._counts[s])
        return ids, nth

    def locate(self, position: int) -> tuple[str, int]:
        """(source, number of its records before) at a position of the stream."""
        period, offset = divmod(position, PERIOD)
        ids, nth = self._pattern(period)
        s = int(ids[offset])
        return self.sources[s], int(period * self._counts[s] + nth[offset])
