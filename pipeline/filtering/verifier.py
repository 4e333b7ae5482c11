"""A fitted verifier: the probability that a region is right, by a model that is kept as plain arrays.

A verifier is a folder with ``verifier.npz``, which holds numbers and names only, so that loading one
runs no code of it, and the report of its fit.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.data.records import VERIFIED
from pipeline.errors import InputError
from pipeline.filtering.evidence import BUCKETS, Mentions, evidence
from pipeline.filtering.store import RegionShard
from pipeline.io.atomic import OutputFile, write_atomic
from pipeline.io.files import file_size, read_bytes
from pipeline.io.hashing import digest_file
from pipeline.io.paths import join

FILE = "verifier.npz"
VERSION = 1
PRECISIONS = (0.8, 0.9, 0.95)
LINEAR_LIMIT = 5.0
CELLS = 1 << 18
"""Regions times trees that are walked at a time."""
STEPS = 1000
"""Resolution of the thresholds of :func:`expected_precision`."""


@dataclass(frozen=True)
class Model:
    """Log odds of boosted regression trees, node by node, and of a linear term; tree i begins at node ``roots[i]``.

    feature (n,): input that the node splits by, -1 of a leaf. threshold (n,): inputs up to it go
    left. left, right (n,): nodes. missing_left (n,): whether nan goes left. value (n,): of leaves.
    weight, mean, scale (features,): of the linear term, on inputs (x - mean) / scale up to LINEAR_LIMIT either way.
    """

    baseline: np.ndarray
    roots: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    value: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """(n,) float64 log odds of rows of inputs (n, features)."""
        total, step = np.full(len(inputs), float(self.baseline)), max(1, CELLS // max(len(self.roots), 1))
        for start in range(0, len(inputs), step):
            some = inputs[start : start + step]
            rows, node = np.arange(len(some))[:, None], np.tile(self.roots, (len(some), 1))
            while (inner := self.feature[node] >= 0).any():
                x = some[rows, self.feature[node]]
                left = np.where(np.isnan(x), self.missing_left[node], x <= self.threshold[node])
                node = np.where(inner, np.where(left, self.left[node], self.right[node]), node)
            total[start : start + step] += self.value[node].sum(1) + standard(some, self.mean, self.scale) @ self.weight
        return total

    @classmethod
    def constant(cls, log_odds: float, inputs: int) -> Model:
        """A model that gives every region the same log odds."""
        none, leaf = np.zeros(1, np.int64), np.zeros(1)
        return cls(np.array(log_odds), none[:0], none - 1, leaf, none, none, none > 0, leaf, *_no_line(inputs))


def _no_line(inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(inputs), np.zeros(inputs), np.ones(inputs)


def standard(inputs: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(n, features) float64 inputs of the linear term; 0 for nan."""
    values = np.nan_to_num((inputs.astype(np.float64) - mean) / scale)
    return np.asarray(values.clip(-LINEAR_LIMIT, LINEAR_LIMIT))


@dataclass(frozen=True)
class Verifier:
    """A fitted verifier. inputs: names (:func:`pipeline.filtering.evidence.inputs_of`).

    Of log odds between ``log_odds`` (k,), ascending, the probabilities are interpolated between
    ``probability`` (k,).
    """

    inputs: tuple[str, ...]
    model: Model
    log_odds: np.ndarray
    probability: np.ndarray
    mentions: Mentions

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """(n,) float32 probabilities of rows of inputs (n, len(self.inputs))."""
        return np.asarray(np.interp(self.model(inputs), self.log_odds, self.probability), np.float32)

    def verify(self, shard: RegionShard) -> np.ndarray:
        """(size,) float32 probabilities that a whole shard's regions are right.

        Raises:
            InputError: the store lacks a column that the verifier was fitted with.
        """
        return self.predict(evidence(shard, self.inputs, self.mentions))

    def write(self, folder: str | Path) -> OutputFile:
        """Write ``verifier.npz``; the same verifier gives the same bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, version=np.array(VERSION), inputs=np.array(self.inputs), log_odds=self.log_odds,
            probability=self.probability, mentions=self.mentions.counts,
            **{field.name: getattr(self.model, field.name) for field in fields(Model)},
        )  # fmt: skip
        return write_atomic(join(folder, FILE), buffer.getvalue())


def verifier_digest(folder: str | Path) -> str:
    """Digest of a verifier's file, for fingerprints; raises InputError as :func:`read_verifier`."""
    path = join(folder, FILE)
    if file_size(path) is None:
        raise InputError(f"{path}: no such file; want the folder that verify fit wrote")
    return digest_file(path)


def read_verifier(folder: str | Path) -> Verifier:
    """Read a verifier that ``verify fit`` wrote; cached by content.

    Raises:
        InputError: there is none in the folder, it is damaged or of another version.
    """
    return _read(join(folder, FILE), verifier_digest(folder))


@lru_cache(maxsize=2)
def _read(path: str, digest: str) -> Verifier:
    try:
        with np.load(io.BytesIO(read_bytes(path) or b""), allow_pickle=False) as arrays:
            if (version := int(arrays["version"])) != VERSION:
                raise InputError(f"{path}: found version {version}; want {VERSION}: run verify fit again")
            model = Model(**{field.name: arrays[field.name] for field in fields(Model)})
            names = tuple(map(str, arrays["inputs"]))
            mentions = Mentions(arrays["mentions"].reshape(BUCKETS))
            return Verifier(names, _checked(model, len(names)), arrays["log_odds"], arrays["probability"], mentions)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: found a damaged file ({error}); want one that verify fit wrote") from None


def _checked(model: Model, inputs: int) -> Model:
    """The model, if its trees end: every node's children come after it, within the arrays."""
    inner = model.feature >= 0
    children = np.stack([model.left, model.right])[:, inner]
    if (children <= np.flatnonzero(inner)).any() or max(children.max(initial=0), model.roots.max(initial=-1)) >= len(
        inner
    ):
        raise ValueError("nodes of a tree that lead nowhere")
    if model.feature.max() >= inputs or {len(x) for x in (model.weight, model.mean, model.scale)} != {inputs}:
        raise ValueError("inputs without a name")
    return model


def thresholds_of(verified: Iterable[np.ndarray], precisions: Sequence[float]) -> list[tuple[float, int] | None]:
    """For each precision: (lowest threshold above which the mean probability reaches it, number of regions above).

    None: no threshold does. verified: probabilities (n,) of each shard.
    """
    count, total, grid = np.zeros(STEPS, np.int64), np.zeros(STEPS), np.arange(STEPS) / STEPS
    for values in verified:
        above_of = np.searchsorted(grid.astype(np.float32), values)  # a threshold drops what equals it
        values, step = values[above_of > 0], above_of[above_of > 0] - 1
        count += np.bincount(step, minlength=STEPS)
        total += np.bincount(step, values, minlength=STEPS)
    above, mass = count[::-1].cumsum()[::-1], total[::-1].cumsum()[::-1]
    found: list[tuple[float, int] | None] = []
    for precision in precisions:
        reached = np.flatnonzero((above > 0) & (mass >= precision * above))
        found.append((int(reached[0]) / STEPS, int(above[reached[0]])) if len(reached) else None)
    return found


def expected_precision(paths: Sequence[str], precisions: Sequence[float] = PRECISIONS) -> list[str]:
    """Lines for a terminal: a threshold of ``verified`` for each precision, over a whole store."""
    values = (RegionShard(path).numbers(VERIFIED.name) for path in paths)
    return [
        f"  expected precision {precision:g}: "
        + ("no threshold" if found is None else f"threshold={found[0]:g} keeps {found[1]:,} regions")
        for precision, found in zip(precisions, thresholds_of(values, precisions), strict=True)
    ]
