"""What a store says of each region beyond its score, as the inputs of a verifier (docs/verify.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    "margin", "image_margin", "rival_margin", "rival_iou", "same_iou", "width", "height", "area", "aspect", "x", "y",
    "phrase_regions", "image_regions", "image_phrases", "words", "mentions",
)  # fmt: skip
"""Inputs that are computed. margin, image_margin: score minus the best of the phrase's, and of the image's other
phrases' regions; rival_margin: minus the best of other phrases' regions with an IoU of RIVAL_IOU; rival_iou, same_iou:
highest IoU with a region of another phrase, and of the same; width, height, area, x, y: shares of the image; mentions:
log10 of the share of the store's phrases that have this text."""
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
    image, score = shard.keys()[0].astype(np.int64), shard.numbers("score").astype(np.float64)
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
    order = np.argsort(image, kind="stable")
    first, size = run_lengths(image[order])
    before = np.cumsum(size.astype(np.int64) ** 2)
    found = {name: np.zeros(len(order)) for name in ("same_best", "other_best", "rival_best", "rival_iou", "same_iou")}
    for images in np.split(np.arange(len(size)), np.flatnonzero(np.diff(before // PAIRS)) + 1):
        if not len(images):
            continue
        rows = order[first[images[0]] : first[images[-1]] + size[images[-1]]]
        others, starts = np.repeat(size[images], size[images]), np.repeat(first[images], size[images])
        a, b = np.repeat(rows, others), order[np.repeat(starts, others) + concatenated_ranges(others)]
        iou = np.nan_to_num(pair_iou(boxes[a], boxes[b]))
        same, of_b = phrase[a] == phrase[b], np.nan_to_num(score[b])
        at = np.cumsum(others) - others
        for name, values in (
            ("same_best", np.where(same & (a != b), of_b, 0)), ("other_best", np.where(same, 0, of_b)),
            ("rival_best", np.where(~same & (iou >= RIVAL_IOU), of_b, 0)), ("rival_iou", np.where(same, 0, iou)),
            ("same_iou", np.where(same & (a != b), iou, 0)),
        ):  # fmt: skip
            found[name][rows] = np.maximum.reduceat(values, at)
    return {
        "margin": score - found["same_best"], "image_margin": score - found["other_best"],
        "rival_margin": score - found["rival_best"], "rival_iou": found["rival_iou"], "same_iou": found["same_iou"],
    }  # fmt: skip
