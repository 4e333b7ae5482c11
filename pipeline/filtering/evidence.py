"""Inputs of a verifier: numbers that a store has of each region beyond its score (docs/verify.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.records import NAMED_REGIONS, REGIONS, VERIFIED
from pipeline.errors import InputError
from pipeline.filtering.nms import concatenated_ranges, pair_iou, run_lengths
from pipeline.filtering.phrases import text_hashes
from pipeline.filtering.store import RegionShard

COLUMNS = ("score", "token_mean", "token_min", "token_max", "centerness", "rank")
"""Columns that every store has and that are inputs as they are."""
DERIVED = (
    "margin", "image_margin", "rival_margin", "rival_iou", "same_iou", "support", "place_margin",
    "width", "height", "area", "aspect", "x", "y",
    "phrase_regions", "image_regions", "image_phrases", "words", "mentions",
)  # fmt: skip
"""Inputs that are computed. margin, image_margin, rival_margin: score minus the best of the phrase's other regions, of
other phrases' regions, and of those with an IoU of RIVAL_IOU, whose number is support; place_margin: see _place_margin;
rival_iou, same_iou: highest IoU with a region of another phrase, and of the same; width, height, area, x, y: shares of
the image; mentions: log10 of the share of the store's phrases that have this text."""
RIVAL_IOU = 0.5
BUCKETS = 1 << 20
PAIRS = 1 << 21
"""Pairs of regions that are compared at a time."""


class Mentions:
    """Share of the phrases of a store that have a text, counted in BUCKETS buckets of the text's hash.

    counts: (BUCKETS,) uint32. Texts that share a bucket are counted together.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self.counts, self._total = counts, max(int(counts.sum(dtype=np.int64)), 1)

    @classmethod
    def count(cls, shards: Iterable[RegionShard]) -> Mentions:
        """Count the phrases that have regions, once in each image."""
        counts = np.zeros(BUCKETS, np.uint32)
        for shard in shards:
            codes, texts = shard.texts()
            first = np.unique(shard.phrase_ids(), return_index=True)[1]
            np.add.at(counts, _bucket(texts), np.bincount(codes[first], minlength=len(texts)).astype(np.uint32))
        return cls(counts)

    def of(self, texts: pa.Array) -> np.ndarray:
        """(n,) log10 of the share of each text; of one that was not counted as if it had been half a time."""
        return np.asarray(np.log10(np.maximum(self.counts[_bucket(texts)], 0.5) / self._total))


def _bucket(texts: pa.Array) -> np.ndarray:
    return (text_hashes(texts) & np.uint64(BUCKETS - 1)).astype(np.int64)


def inputs_of(shard: RegionShard) -> tuple[str, ...]:
    """Names of a store's inputs: COLUMNS, DERIVED, and its further columns with numbers."""
    known = {*REGIONS.names, *NAMED_REGIONS.names, VERIFIED.name}
    more = [name for name in shard.columns if name not in known and _is_number(shard, name)]
    return (*COLUMNS, *DERIVED, *sorted(more))


def _is_number(shard: RegionShard, name: str) -> bool:
    kind = shard.whole(name).type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def evidence(shard: RegionShard, names: Sequence[str], mentions: Mentions) -> np.ndarray:
    """(size, len(names)) float32 inputs of a whole shard's regions; nan: not known.

    Raises:
        InputError: the store has no such column.
    """
    derived = _derived(shard, mentions)
    lacking = [name for name in names if name not in derived and name not in shard.columns]
    if lacking:
        raise InputError(
            f"{shard.path}: found no column {', '.join(lacking)}; want a store as the one that the verifier was fitted "
            "on (rescore, merge-regions), or a verifier that was fitted on this one"
        )
    columns = [derived[name] if name in derived else shard.numbers(name) for name in names]
    return np.stack([np.asarray(column, np.float32) for column in columns], 1)


def _derived(shard: RegionShard, mentions: Mentions) -> dict[str, np.ndarray]:
    image, score = shard.keys()[0].astype(np.int64), np.nan_to_num(shard.numbers("score").astype(np.float64))
    phrase = np.unique(shard.phrase_ids(), return_inverse=True)[1]
    codes, texts = shard.texts()
    x1, y1, x2, y2 = shard.boxes().T
    height, width = (shard.numbers(name).astype(np.float64) for name in ("height", "width"))
    with np.errstate(divide="ignore", invalid="ignore"):
        aspect = np.log(np.clip((x2 - x1) / (y2 - y1), 1e-3, 1e3))
    _, first = np.unique(phrase, return_index=True)
    words = pc.add(pc.count_substring(texts, " "), 1).to_numpy(zero_copy_only=False)
    return _neighbours(shard.boxes(), score, image, phrase) | {
        "width": (x2 - x1) / width, "height": (y2 - y1) / height, "area": (x2 - x1) * (y2 - y1) / (width * height),
        "aspect": aspect, "x": (x1 + x2) / (2 * width), "y": (y1 + y2) / (2 * height),
        "phrase_regions": np.bincount(phrase)[phrase], "image_regions": np.bincount(image)[image],
        "image_phrases": np.bincount(image[first], minlength=int(image.max(initial=-1)) + 1)[image],
        "words": words[codes], "mentions": mentions.of(texts)[codes],
    }  # fmt: skip


def _neighbours(boxes: np.ndarray, score: np.ndarray, image: np.ndarray, phrase: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs that compare each region with the others of its image; a margin without any other is the score."""
    names = ("same_best", "other_best", "rival_best", "rival_iou", "same_iou", "support", "place_margin")
    found = {name: np.zeros(len(score)) for name in names}
    order = np.argsort(image, kind="stable")
    first, size = run_lengths(image[order])
    before = np.cumsum(size.astype(np.int64) ** 2)
    for images in np.split(np.arange(len(size)), np.flatnonzero(np.diff(before // PAIRS)) + 1):
        if not len(images):
            continue
        rows = order[first[images[0]] : first[images[-1]] + size[images[-1]]]
        others, starts = (
            np.repeat(size[images], size[images]),
            np.repeat(first[images] - first[images[0]], size[images]),
        )
        a, b = np.repeat(np.arange(len(rows)), others), np.repeat(starts, others) + concatenated_ranges(others)
        a, b = a[a != b], b[a != b]
        iou = np.nan_to_num(pair_iou(boxes[rows[a]], boxes[rows[b]]))
        same, of_b, of = phrase[rows[a]] == phrase[rows[b]], score[rows[b]], partial(_highest, a, len(rows))
        rival = ~same & (iou >= RIVAL_IOU)
        chunk = {
            "same_best": of(same * of_b), "other_best": of(~same * of_b), "rival_best": of(rival * of_b),
            "rival_iou": of(~same * iou), "same_iou": of(same * iou),
            "support": np.bincount(a[rival], minlength=len(rows)),
            "place_margin": _place_margin(score[rows], a[same | rival], b[same | rival]),
        }  # fmt: skip
        for name, values in chunk.items():
            found[name][rows] = values
    margins = {"margin": "same_best", "image_margin": "other_best", "rival_margin": "rival_best"}
    return found | {name: score - found[best] for name, best in margins.items()}


def _highest(of: np.ndarray, size: int, values: np.ndarray) -> np.ndarray:
    """(size,) highest of the ``values`` of each number in ``of``; 0 without any."""
    result = np.zeros(size)
    np.maximum.at(result, of, values)
    return result


def _place_margin(score: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) score minus that of the best conflicting region, if each place and each phrase is given away once.

    Regions take their places from the best score on, unless a region in conflict (pairs a, b) has taken its own
    before. Of a region that took its place the best that it refused counts; of another the one that refused it.
    """
    rank = np.empty(len(score), np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(len(score))
    waits, taken = np.ones(len(score), bool), np.zeros(len(score), bool)
    refused_by = np.zeros(len(score))
    while waits.any():
        better = waits[a] & waits[b] & (rank[b] < rank[a])
        blocked = np.zeros(len(score), bool)
        blocked[a[better]] = True
        now = waits & ~blocked
        taken |= now
        loses = now[b] & waits[a] & ~now[a]
        np.maximum.at(refused_by, a[loses], score[b[loses]])
        waits &= ~now
        waits[a[loses]] = False
    refused = taken[a] & ~taken[b] & (refused_by[b] == score[a])
    return score - np.where(taken, _highest(a[refused], len(score), score[b[refused]]), refused_by)
