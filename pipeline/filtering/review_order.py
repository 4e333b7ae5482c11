"""Order in which people review regions, and the precision that a random or stratified sample of verdicts shows."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, get_args
from zlib import crc32

import numpy as np

from pipeline.filtering.calibration import wilson
from pipeline.filtering.nms import concatenated_ranges, run_lengths

Order = Literal["uncertain", "disagreement", "rare", "random", "stratified"]
ORDERS: tuple[Order, ...] = get_args(Order)
SAMPLES = ("random", "stratified")
"""Orders whose first n regions are a sample from which precision is estimated."""
STRATA = 10
HALF_WIDTH = 0.02
"""Half of the interval's width at which an estimate is precise enough."""
_MANY = 1 << 20


def draws(seed: int, shard: str, n: int) -> np.ndarray:
    """(n,) float64 random numbers of a shard's rows; the same whatever other shards there are."""
    return np.random.default_rng([seed, crc32(shard.encode())]).random(n)


def uncertain(score: np.ndarray, threshold: float, verified: np.ndarray | None = None) -> np.ndarray:
    """(n,) distance from the threshold, or of the verifier's probability, if there is one, from 0.5."""
    return np.abs(score - threshold) if verified is None else np.abs(verified - 0.5)


def disagreement(score: np.ndarray, agreed: np.ndarray | None, stores: int, verified: np.ndarray | None) -> np.ndarray:
    """(n,) rank, smaller first: the share of ``stores`` that lack the region, or the verifier's distance from the
    score, whichever is larger."""
    zero = np.zeros(len(score))
    lacking = zero if agreed is None else 1 - agreed / max(stores, 1)
    return -np.maximum(lacking, zero if verified is None else np.abs(verified - score))


def strata_of(score: np.ndarray) -> np.ndarray:
    """(n,) int64 decile of each score, from 0; equal scores have the same."""
    if not len(score):
        return np.zeros(0, np.int64)
    edges = np.unique(np.quantile(score, np.arange(1, STRATA) / STRATA))
    return np.unique(np.searchsorted(edges, score, side="left"), return_inverse=True)[1]


def image_order(rank: np.ndarray, draw: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order images by their best region (smallest rank, ties by ``draw``), and regions within them the same way.

    Args:
        image: (n,) number of each region's image.

    Returns:
        (n,) regions in order, and the position in it at which each image begins.
    """
    order = np.lexsort((draw, rank))
    first = np.empty(int(image.max(initial=0)) + 1, np.int64)
    first[image[order][::-1]] = np.arange(len(order))[::-1]  # of those written to one place, the last one stays
    order = order[np.argsort(first[image[order]], kind="stable")]
    return order, np.flatnonzero(np.diff(image[order], prepend=-1))


def sample_order(draw: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """(n,) regions, one of each stratum after the other, at random within it."""
    order = np.lexsort((draw, stratum))
    turn = concatenated_ranges(run_lengths(stratum[order])[1])
    return order[np.lexsort((draw[order], turn))] if len(order) else order


@dataclass(frozen=True)
class Estimate:
    """Share of correct regions with its 95 % interval, and the number of further verdicts after which, at the same
    precision, the interval is +-HALF_WIDTH wide, or no region is left."""

    precision: float
    low: float
    high: float
    more: int


def estimate(correct: np.ndarray, judged: np.ndarray, size: np.ndarray) -> Estimate | None:
    """Estimate precision from verdicts in strata; None while a stratum has none.

    The interval combines the strata's Wilson intervals by the method of variance estimates recovery (Zou and Donner
    2008, doi:10.1002/sim.3095); of one stratum it is Wilson's.

    Args:
        correct, judged, size: (strata,) numbers of correct, judged and all regions.
    """
    if not len(size) or not judged.all():
        return None
    n, share = int(judged.sum()), size / size.sum()

    def interval(times: float) -> tuple[float, float, float]:
        p = correct / judged
        low, high = wilson(correct * times, judged * times)
        middle = float(share @ p)
        below, above = (float(np.sqrt(((share * side) ** 2).sum())) for side in (p - low, high - p))
        return middle, max(0.0, middle - below), min(1.0, middle + above)

    def enough(more: int) -> bool:
        _, low, high = interval(1 + more / n)
        return high - low <= 2 * HALF_WIDTH

    more = bisect_left(range(_MANY), True, key=enough)
    return Estimate(*interval(1), min(more, int(size.sum()) - n))
