"""Which record stands at which place of the endless stream that training reads.

Everything is a function of (seed, place): no worker, process count or restart can change the order, and resuming at
step N is a matter of arithmetic. Shards are read in blocks, so that a big set is still read nearly in sequence.
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
"""Places after which a mixture's shares hold exactly (to one part in PERIOD)."""


def generator(*parts: int | str) -> np.random.Generator:
    """A random generator named by its parts: the same parts give the same numbers everywhere."""
    return np.random.default_rng([p if isinstance(p, int) else zlib.crc32(p.encode()) for p in parts])


class Remembered(Generic[T]):
    """The last ``size`` values of a function, by its arguments. Unlike a bare ``lru_cache`` it goes to another process, where it begins empty."""

    def __init__(self, make: Callable[..., T], size: int) -> None:
        self._make, self._size = make, size
        self._value = lru_cache(maxsize=size)(make)

    def __call__(self, *of: Hashable) -> T:
        return self._value(*of)

    def __reduce__(self) -> tuple[object, ...]:
        return Remembered, (self._make, self._size)


class SourceOrder:
    """The order of one source's records: shards shuffled each epoch, records shuffled within blocks of shards.

    Args:
        counts: records in each shard.
        seed, name: what the shuffling depends on.
        block: shards that are open, and mixed, at a time.
    """

    def __init__(self, counts: Sequence[int], *, seed: int, name: str, block: int = 16) -> None:
        self.total = int(sum(counts))
        if self.total == 0:
            raise InputError(f"source {name}: its shards hold no records")
        self._counts = np.asarray(counts, dtype=np.int64)
        self._ends = np.cumsum(self._counts)
        self._seed, self._name, self._block = seed, name, block
        self._epoch = Remembered(self._make_epoch, 2)
        self._rows = Remembered(self._make_rows, 2)

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
        epoch, place = divmod(n, self.total)
        starts = self._epoch(epoch)[1]
        block = int(np.searchsorted(starts, place, side="right")) - 1
        shard, row = self._rows(epoch, block)[place - starts[block]]
        return int(shard), int(row)

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """(shard, row in the shard) of any record, each as likely as the others, whatever the order is.

        Found by the shards' counts alone: to jump about in the shuffled order costs the shuffling of a block of shards each time.
        """
        number = int(rng.integers(self.total))
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, int(number - self._ends[shard] + self._counts[shard])


class Mixture:
    """Which source each place of the stream is filled from: stated shares, exact over every PERIOD places.

    Raises:
        InputError: a share for a source that is not there, a source without a share, or shares that are not positive.
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
        self._pattern = Remembered(self._make_pattern, 4)

    def _make_pattern(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        ids = generator(self._seed, "mixture", period).permutation(
            np.repeat(np.arange(len(self._counts)), self._counts)
        )
        nth = np.zeros(PERIOD, dtype=np.int64)
        for s in range(len(self._counts)):
            nth[ids == s] = np.arange(self._counts[s])
        return ids, nth

    def locate(self, place: int) -> tuple[str, int]:
        """(source, how many of that source came before) of a place of the stream."""
        period, offset = divmod(place, PERIOD)
        ids, nth = self._pattern(period)
        s = int(ids[offset])
        return self.sources[s], int(period * self._counts[s] + nth[offset])
