"""calibrate: the lowest threshold that reaches a precision on gold boxes, for each band of phrase
frequency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.config import FilterConfig
from pipeline.errors import InputError, RunError
from pipeline.execution.progress import Progress, Silent
from pipeline.filtering.fitted import FilterTables, load_tables
from pipeline.filtering.gold import gold_tables, match, read_gold
from pipeline.filtering.rules import apply_rules, open_regions, scores
from pipeline.filtering.thresholds import CALIBRATION_OVERRIDES, Band, Fit, Thresholds, band_of
from pipeline.io.atomic import write_json
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_file, digest_json
from pipeline.io.paths import stem

BANDS = (100, 1000, 10000)
Z = 1.959963984540054
"""95 %, two-sided."""


def wilson(correct: Any, n: Any) -> tuple[Any, Any]:
    """Wilson's score interval (Wilson 1927) of ``correct`` of ``n``, at 95 %; numbers or arrays, n
    > 0.
    """
    share = correct / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return middle - half, middle + half


@dataclass(frozen=True)
class Sample:
    """Labels in images with gold: score, whether they fit, the gold box they name (-1: none), band;
    and gold's bands.
    """

    score: np.ndarray
    correct: np.ndarray
    gold: np.ndarray
    band: np.ndarray
    gold_band: np.ndarray


def calibrate(
    config: FilterConfig,
    regions: Sequence[str],
    gold: str | Path,
    out: str | Path,
    *,
    precision: float = 0.9,
    counts: str | Path | None = None,
    bands: Sequence[int] = BANDS,
    by: Literal["estimate", "lower"] = "estimate",
    min_labels: int = 50,
    iou: float = 0.5,
    progress: Progress | None = None,
) -> Thresholds:
    """Fit thresholds on a labelled sample that went through the same path, and write them to
    ``out``.

    The rules on regions are applied as set, without the threshold, caps and the rules on whole
    images; they keep the same regions whatever the threshold above them. Only images with rows in
    the gold tables count.

    Args:
        precision: 0..1, share of kept labels that fit. counts: what count-phrases wrote; without it
            there is one band.
        bands: mentions at which the second and later bands begin.
        by: the precision that has to be reached, of the sample or the lower end of its Wilson
            interval.
        min_labels: a threshold must keep so many labels of the sample to be believed; a band with
            fewer takes the threshold of all bands together.

    Raises:
        InputError: an input is missing, or no shard has gold. RunError: no band reaches the
            precision.
    """
    require_files(regions)
    fitted = load_tables(None, counts)
    starts = [0, *sorted(bands)] if counts is not None else [0]
    if fitted.counts is not None and len(starts) > 1 and starts[1] < fitted.counts.min_count:
        raise InputError(
            f"{counts}: holds phrases from {fitted.counts.min_count} mentions on, but the second band begins at {starts[1]}; "
            f"run count-phrases --min-count {starts[1]}"
        )
    golds = {name: path for name, path in gold_tables(gold).items() if name in {stem(p) for p in regions}}
    if not golds:
        raise InputError(f"{gold}: has no gold table of the name of any of the shards")
    progress = progress or Silent()
    progress.begin("calibrate", len(golds), "shards")
    rules = config.model_copy(update=CALIBRATION_OVERRIDES)
    parts, boxes = [], 0
    for path in regions:
        if stem(path) in golds:
            part = _sample(path, golds[stem(path)], rules, fitted, starts, iou, boxes)
            parts.append(part)
            boxes += len(part.gold_band)
            progress.advance(1, "shards")
    sample = Sample(*(np.concatenate([getattr(p, f) for p in parts]) for f in Sample.__dataclass_fields__))
    inputs = {
        "regions": digest_json({stem(p): digest_file(p) for p in regions if stem(p) in golds}),
        "gold": digest_json({name: digest_file(p) for name, p in golds.items()}),
    } | ({} if counts is None else {"counts": digest_file(counts)})
    result = fit(sample, starts, precision, by, min_labels, iou=iou, rules=rules.effective(), inputs=inputs)
    write_json(out, result.model_dump(mode="json"))
    return result


def _sample(
    path: str, gold: str, config: FilterConfig, fitted: FilterTables, starts: list[int], iou: float, offset: int
) -> Sample:
    shard, truth = open_regions(path, config), read_gold(gold)
    codes, keys = shard.keys()
    mine = apply_rules(shard, config).keeps & truth.has(keys)[codes]
    text_codes, texts = shard.texts()
    matched, correct = match(truth, codes, keys, shard.numbers("start"), shard.numbers("end"), shard.boxes(), iou)
    if fitted.counts is None:
        band, gold_band = np.zeros(len(texts), np.int64), np.zeros(len(truth), np.int64)
    else:
        band = band_of(starts, fitted.counts.of(texts)[0])
        gold_band = band_of(starts, fitted.counts.of(truth.phrases)[0])
    return Sample(
        scores(shard, config)[mine],
        correct[mine],
        np.where(matched < 0, -1, matched + offset)[mine],
        band[text_codes][mine],
        gold_band,
    )


def fit(
    sample: Sample,
    starts: list[int],
    precision: float,
    by: Literal["estimate", "lower"],
    min_labels: int,
    *,
    iou: float,
    rules: dict[str, Any],
    inputs: dict[str, str],
) -> Thresholds:
    """The thresholds of all bands; see :func:`calibrate`."""
    everything = np.ones(len(sample.score), bool)
    pooled = _fit(sample, everything, len(sample.gold_band), precision, by, min_labels)
    bands = []
    for number, start in enumerate(starts):
        mine = sample.band == number
        n_gold = int((sample.gold_band == number).sum())
        own = _fit(sample, mine, n_gold, precision, by, min_labels)
        status: Literal["fitted", "pooled", "closed"] = "fitted" if own.threshold is not None else "closed"
        if own.labels < min_labels and pooled.threshold is not None:
            status = "pooled"
            own = _at(sample, mine, n_gold, pooled.threshold)
        bands.append(Band(**own.model_dump(), from_mentions=start, status=status))
    if all(b.threshold is None for b in bands):
        best = (
            ""
            if pooled.best_precision is None
            else f"; the best that {min_labels} labels or more reach is {pooled.best_precision:.3f}"
        )
        raise RunError(
            f"calibrate: no threshold reaches precision {precision} ({pooled.labels} labels in images with gold, "
            f"{pooled.correct} correct{best}); ask for less, or for fewer --min-labels"
        )
    return Thresholds(
        precision=precision, by=by, min_labels=min_labels, iou=iou, rules=rules, inputs=inputs, pooled=pooled, bands=tuple(bands)
    )  # fmt: skip


def _fit(
    sample: Sample, mine: np.ndarray, gold: int, precision: float, by: Literal["estimate", "lower"], min_labels: int
) -> Fit:
    """The lowest threshold whose labels reach the precision; None if there is none."""
    rows = np.flatnonzero(mine)
    order = rows[np.argsort(-sample.score[rows], kind="stable")]
    score, right = sample.score[order], np.cumsum(sample.correct[order])
    kept = np.arange(1, len(order) + 1)
    ends = np.append(score[1:] != score[:-1], True) if len(order) else np.zeros(0, bool)  # equal scores go together
    ends &= kept >= min_labels
    n, k = kept[ends], right[ends]
    if not len(n):
        return Fit(labels=len(rows), correct=int(sample.correct[rows].sum()), gold=gold, threshold=None)
    shares = k / n
    good = np.flatnonzero((shares if by == "estimate" else wilson(k, n)[0]) >= precision)
    best = round(float(shares.max()), 6)
    if not len(good):
        found = Fit(labels=len(rows), correct=int(sample.correct[rows].sum()), gold=gold, threshold=None)
        return found.model_copy(update={"best_precision": best})
    last = int(n[good[-1]])  # the highest score that is left out is the threshold: scores above it are kept
    threshold = float(score[last]) if last < len(score) else 0.0
    return _at(sample, mine, gold, threshold).model_copy(update={"best_precision": best})


def _at(sample: Sample, mine: np.ndarray, gold: int, threshold: float) -> Fit:
    kept = mine & (sample.score > np.float32(threshold))
    n, k = int(kept.sum()), int((kept & sample.correct).sum())
    low, high = wilson(k, n) if n else (None, None)
    return Fit(
        labels=int(mine.sum()),
        correct=int((mine & sample.correct).sum()),
        gold=gold,
        threshold=threshold,
        kept=n,
        kept_correct=k,
        found=len(np.unique(sample.gold[kept & sample.correct])),
        precision=round(k / n, 6) if n else None,
        low=None if low is None else round(float(low), 6),
        high=None if high is None else round(float(high), 6),
    )


def lines(result: Thresholds) -> list[str]:
    """The bands as a table for a terminal."""
    out = [
        f"{'mentions':>9}  {'labels':>7}  {'threshold':>9}  {'kept':>7}  {'precision':>9}  {'95 %':>15}  {'recall':>6}  how"
    ]
    for band in result.bands:
        numbers = ["-", "0", "-", "-", "-"]
        if band.threshold is not None:
            interval = "-" if band.low is None else f"{100 * band.low:.1f} to {100 * (band.high or 0):.1f}"
            numbers = [f"{band.threshold:.4f}", f"{band.kept:,}", _percent(band.precision), interval]
            numbers.append(_percent(band.found / band.gold if band.gold else None))
        how = {"closed": f"nothing reaches it; best {_percent(band.best_precision)}"}.get(band.status, band.status)
        out.append(
            f"{f'from {band.from_mentions}':>9}  {band.labels:>7,}  {numbers[0]:>9}  {numbers[1]:>7}  {numbers[2]:>9}  "
            f"{numbers[3]:>15}  {numbers[4]:>6}  {how}"
        )
    return out


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
