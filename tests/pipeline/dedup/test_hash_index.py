"""The banded index finds what comparing all with all finds, at any distance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.dedup.hash_index
from pipeline.dedup.hash_index import BandedIndex
from pipeline.dedup.perceptual_hash import MIRROR, WORDS, hamming
from pipeline.dedup.search import Block, MatchRules


def cloud(rng: np.random.Generator, n: int, centres: np.ndarray) -> np.ndarray:
    """n hashes, each some bits off one of the centres (m,): 0 to 20 or so."""
    found = rng.choice(centres, n)
    for _ in range(20):
        bit = np.uint64(1) << rng.integers(0, 64, n, dtype=np.uint64)
        found = np.where(rng.random(n) < rng.random() * 0.8, found ^ bit, found)
    return found


def brute(indexed: np.ndarray, queries: np.ndarray, distance: int) -> list[tuple[int, int]]:
    far = np.bitwise_count(queries[:, None] ^ indexed[None])
    return list(zip(*(places.tolist() for places in np.nonzero(far <= distance)), strict=True))


def searched(indexed: np.ndarray, queries: np.ndarray, distance: int) -> list[tuple[int, int]]:
    return list(zip(*(found.tolist() for found in BandedIndex(indexed, distance).search(queries)), strict=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 24), st.integers(0, 60), st.integers(0, 60))
def test_it_finds_what_brute_force_finds(seed, distance, n, m):
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 4, dtype=np.uint64)
    indexed, queries = cloud(rng, n, centres), cloud(rng, m, centres)
    assert searched(indexed, queries, distance) == brute(indexed, queries, distance)


@pytest.mark.parametrize("distance", [32, 63, 64])
def test_far_distances_too(distance):
    rng = np.random.default_rng(distance)
    indexed, queries = (rng.integers(0, 2**64, 12, dtype=np.uint64) for _ in range(2))
    assert searched(indexed, queries, distance) == brute(indexed, queries, distance)


def test_the_hardest_pairs_are_found():
    """Bits that are dealt out so that no band is nearer than it must be."""
    for distance in range(20):
        spread = [distance // 4 + (band < distance % 4) for band in range(4)]
        for turn in range(4):
            bits = sum(((1 << spread[(band + turn) % 4]) - 1) << (16 * band) for band in range(4))
            indexed, query = np.array([0], np.uint64), np.array([bits], np.uint64)
            assert searched(indexed, query, distance) == [(0, 0)]
            assert distance == 0 or searched(indexed, query, distance - 1) == []


def test_candidates_are_compared_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 3, dtype=np.uint64)
    indexed, queries = cloud(rng, 200, centres), cloud(rng, 300, centres)
    whole = searched(indexed, queries, 9)
    monkeypatch.setattr(pipeline.dedup.hash_index, "CANDIDATES_AT_ONCE", 50)
    assert searched(indexed, queries, 9) == whole == brute(indexed, queries, 9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_block_judges_by_all_bits_and_gives_each_pair_once(seed, mirrored):
    rng = np.random.default_rng(seed)
    wanted = rng.integers(0, 2**64, (30, WORDS), dtype=np.uint64)
    wanted[0] = 0  # mirrored it is no other: near both ways
    words = wanted[rng.integers(0, 30, 80)]
    words = np.where(rng.random((80, 1)) < 0.5, words, words ^ MIRROR)
    for _ in range(60):
        bit = np.uint64(1) << rng.integers(0, 64, (80, WORDS), dtype=np.uint64)
        words = np.where(rng.random((80, WORDS)) < 0.3, words ^ bit, words)
    found = Block(wanted, 7, MatchRules(11, 72, mirrored)).search(words)
    expected = {}
    for i, mine in enumerate(words):
        for j, other in enumerate(wanted):
            ways = [(other, False), (other ^ MIRROR, True)][: 1 + mirrored]
            near = [
                (int(hamming(mine[None], w[None])[0]), flipped, int(hamming(mine[:1], w[:1])[0])) for w, flipped in ways
            ]
            near = [n for n in near if n[0] <= 72 and n[2] <= 11]
            if near:
                details, flipped, distance = min(near)
                expected[i, j + 7] = (distance, details, flipped)
    got = dict(
        zip(
            zip(found.row.tolist(), found.wanted.tolist(), strict=True),
            zip(found.distance.tolist(), found.details.tolist(), found.mirrored.tolist(), strict=True),
            strict=True,
        )
    )
    assert got == expected and len(got) == len(found.row)
