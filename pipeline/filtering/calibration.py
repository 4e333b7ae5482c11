"""Lowest threshold that reaches a precision on gold boxes, for each band of phrase frequency or class name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import FilterConfig
from pipeline.data.verdicts import Verdicts
from pipeline.errors import InputError, RunError
from pipeline.execution.progress import Progress, Silent
from pipeline.filtering.fitted import FilterTables, load_tables
from pipeline.filtering.gold import GoldMatcher, comparable, gold_tables, read_gold
from pipeline.filtering.rules import apply_rules, open_regions, scores, versioned
from pipeline.filtering.store import RegionShard
from pipeline.filtering.thresholds import CALIBRATION_OVERRIDES, Band, Fit, NameFit, Thresholds, band_of
from pipeline.filtering.verdicts import JoinedVerdicts
from pipeline.io.atomic import write_json
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_file, digest_json
from pipeline.io.paths import stem

BANDS = (100, 1000, 10000)
Z = 1.959963984540054
"""Quantile of the normal distribution for a two-sided 95 % interval."""


def wilson(correct: Any, n: Any) -> tuple[Any, Any]:
    """95 % Wilson score interval (Wilson 1927) of ``correct`` out of ``n`` > 0; numbers or arrays."""
    share = correct / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return middle - half, middle + half


@dataclass(frozen=True)
class Sample:
    """Labels in images with gold boxes.

    score (n,); correct (n,): they match their gold box; gold (n,): its index, -1 for none; band
    (n,): frequency band, or number of the class name; gold_band (m,): those of the gold boxes, -1 for other names.
    """

    score: np.ndarray
    correct: np.ndarray
    gold: np.ndarray
    band: np.ndarray
    gold_band: np.ndarray


def calibrate(
    config: FilterConfig,
    regions: Sequence[str],
    gold: str | Path | None,
    out: str | Path,
    *,
    verdicts: str | Path | None = None,
    precision: float = 0.9,
    counts: str | Path | None = None,
    bands: Sequence[int] = BANDS,
    by: Literal["estimate", "lower"] = "estimate",
    min_labels: int = 50,
    iou: float = 0.5,
    progress: Progress = Silent(),
) -> Thresholds:
    """Find thresholds on a sample of regions with gold boxes or verdicts, and write them to ``out``.

    Rules for single regions are applied as configured; the threshold, caps and rules for whole
    images are disabled. Only images with rows in the gold tables count, or only regions that verdicts
    judge, which should be of a random sample. For regions of class names, without
    ``counts``, each name has a threshold, and the file is of :class:`NameThresholds`.

    Args:
        gold: folder of gold tables. verdicts: folder of verdicts; one of the two.
        precision: required share of correct labels, 0..1.
        counts: output of count-phrases; without it there is one band, or one threshold for each class name.
        bands: numbers of mentions at which the second and later bands begin.
        by: "estimate": the sample's precision must reach ``precision``; "lower": the lower end of
            its Wilson interval.
        min_labels: minimum number of labels kept by a threshold; a band or name with fewer uses the
            threshold of all together.
        iou: minimum IoU of a correct label with its gold box.

    Raises:
        InputError: an input is missing, no shard has gold boxes or verdicts, or shards are of different class names.
        RunError: no band reaches the precision.
    """
    require_files(regions)
    fitted = load_tables(None, counts)
    starts = [0, *sorted(bands)] if counts is not None else [0]
    if fitted.counts is not None and len(starts) > 1 and starts[1] < fitted.counts.min_count:
        raise InputError(
            f"{counts}: has phrases from {fitted.counts.min_count} mentions on, but the second band begins at "
            f"{starts[1]}; run count-phrases --min-count {starts[1]}"
        )
    truths = _truths(gold, verdicts, [stem(p) for p in regions])
    progress.begin("calibrate", len(truths), "shards")
    rules = config.model_copy(update=CALIBRATION_OVERRIDES)
    samples, boxes = [], 0
    measured = [path for path in regions if stem(path) in truths]
    names = RegionShard(measured[0]).names if counts is None else None
    for path in measured:
        if counts is None and RegionShard(path).names != names:
            raise InputError(f"{path}: found other class names than {measured[0]}'s; want regions of one run")
        samples.append(_sample(path, truths[stem(path)], rules, fitted, starts, iou, boxes))
        boxes += len(samples[-1].gold_band)
        progress.advance(1, "shards")
    sample = Sample(*(np.concatenate([getattr(s, f) for s in samples]) for f in Sample.__dataclass_fields__))
    inputs = {
        "regions": digest_json({stem(p): digest_file(p) for p in measured}),
        "gold" if verdicts is None else "verdicts": digest_json({name: t.digest() for name, t in truths.items()}),
    } | ({} if counts is None else {"counts": digest_file(counts)})
    groups = len(starts) if names is None else len(names.names)
    pooled, fits = fit(sample, groups, precision, by, min_labels)
    about = {"precision": precision, "by": by, "min_labels": min_labels, "iou": iou, "inputs": inputs}
    if names is None:
        by_band = tuple(Band(**own, from_mentions=start) for own, start in zip(fits, starts, strict=True))
        result = Thresholds(**about, rules=versioned(rules), pooled=pooled, bands=by_band)
        write_json(out, result.model_dump(mode="json"))
        return result
    whole = Band(**pooled.model_dump(), from_mentions=0, status="closed" if pooled.threshold is None else "fitted")
    by_name = tuple(NameFit(**own, name=name) for own, name in zip(fits, names.names, strict=True))
    write_json(out, {each.name: _at_least(each.threshold, config.include_equal) for each in by_name})
    return Thresholds(**about, rules=versioned(rules), pooled=pooled, bands=(whole,), names=by_name)


def _at_least(threshold: float | None, include_equal: bool) -> float | None:
    """The threshold that keeps scores above ``threshold``; ``include_equal``: it is kept itself."""
    if threshold is None or not include_equal:
        return threshold
    return min(1.0, float(np.nextafter(np.float32(threshold), np.float32(2))))


@dataclass(frozen=True)
class _Gold:
    """Gold table of a shard."""

    path: str

    def digest(self) -> str:
        return digest_file(self.path)

    def match(self, shard: RegionShard, keeps: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        """(labels that count (size,); gold box of each, -1 for none (size,); phrase of each gold box)."""
        truth, (codes, keys) = read_gold(self.path), shard.keys()
        labels = keeps & truth.has(keys)[codes]
        truth, start, end = comparable(truth, shard)
        matcher = GoldMatcher(truth, codes, keys, start, end, shard.boxes(), shard.numbers("score"), iou)
        return labels, matcher.match(labels), truth.phrases


@dataclass(frozen=True)
class _Verdicts:
    """Verdicts on a shard; its gold boxes are the correct regions, and the boxes that were missing."""

    verdicts: pa.Table

    def digest(self) -> str:
        return digest_json(sorted(self.verdicts["id"].to_pylist()))

    def match(self, shard: RegionShard, keeps: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        """As of :class:`_Gold`."""
        judged, correct = JoinedVerdicts(shard, self.verdicts).judge(shard, iou)
        taken = np.full(shard.size, -1)
        taken[correct] = np.arange(int(correct.sum()))
        codes, texts = shard.texts()
        missing = [row for row in self.verdicts.select(["verdict", "phrase", "boxes"]).to_pylist()
                   if row["verdict"] == "missing"]  # fmt: skip
        more = pa.array([row["phrase"].lower() for row in missing for _ in row["boxes"]], pa.string())
        return keeps & judged, taken, pa.concat_arrays([texts.take(pa.array(codes[correct])).cast(pa.string()), more])


def _truths(
    gold: str | Path | None, verdicts: str | Path | None, shards: Sequence[str]
) -> dict[str, _Gold] | dict[str, _Verdicts]:
    """Shard -> its gold or verdicts."""
    if (gold is None) == (verdicts is None):
        raise InputError("calibrate: want either --gold or --verdicts")
    if gold is not None:
        golds = {name: _Gold(path) for name, path in gold_tables(gold).items() if name in shards}
        if not golds:
            raise InputError(f"{gold}: has no gold table with the name of a shard")
        return golds
    decided = Verdicts.read(str(verdicts))
    decided.warn_of_unknown_shards(shards)
    if not (of_shards := {name: _Verdicts(table) for name, table in decided.shards.items() if name in shards}):
        raise InputError(f"{verdicts}: found no verdict; want some on these regions")
    return of_shards


def _sample(
    path: str,
    truth: _Gold | _Verdicts,
    config: FilterConfig,
    fitted: FilterTables,
    starts: list[int],
    iou: float,
    offset: int,
) -> Sample:
    shard = open_regions(path, config)
    labels, matched, phrases = truth.match(shard, apply_rules(shard, config).keeps, iou)
    text_codes, texts = shard.texts()
    score = scores(shard, config)
    if fitted.counts is None and shard.names is not None:
        known = pa.array([name.lower() for name in shard.names.names], pa.string())
        band, gold_band = (
            pc.fill_null(pc.index_in(t, value_set=known), -1).to_numpy(zero_copy_only=False) for t in (texts, phrases)
        )
    elif fitted.counts is None:
        band, gold_band = np.zeros(len(texts), np.int64), np.zeros(len(phrases), np.int64)
    else:
        band = band_of(starts, fitted.counts.of(texts)[0])
        gold_band = band_of(starts, fitted.counts.of(phrases)[0])
    return Sample(
        score[labels],
        (matched >= 0)[labels],
        np.where(matched < 0, -1, matched + offset)[labels],
        band[text_codes][labels],
        gold_band,
    )


def fit(
    sample: Sample, groups: int, precision: float, by: Literal["estimate", "lower"], min_labels: int
) -> tuple[Fit, list[dict[str, Any]]]:
    """Find the threshold of all labels together, and of each band or name the fields of a :class:`Fit` and ``status``.

    Arguments as of :func:`calibrate`; ``groups``: number of the bands or names.
    """
    all_labels = np.ones(len(sample.score), bool)
    pooled = _fit(sample, all_labels, len(sample.gold_band), precision, by, min_labels)
    bands = []
    for number in range(groups):
        in_band = sample.band == number
        n_gold = int((sample.gold_band == number).sum())
        own = _fit(sample, in_band, n_gold, precision, by, min_labels)
        status: Literal["fitted", "pooled", "closed"] = "fitted" if own.threshold is not None else "closed"
        if own.labels < min_labels and pooled.threshold is not None:
            status = "pooled"
            own = _at(sample, in_band, n_gold, pooled.threshold)
        bands.append(own.model_dump() | {"status": status})
    if all(b["threshold"] is None for b in bands):
        best = ""
        if pooled.best_precision is not None:
            best = f"; the best that {min_labels} labels or more reach is {pooled.best_precision:.3f}"
        raise RunError(
            f"calibrate: no threshold reaches precision {precision} ({pooled.labels} labels in images with gold, "
            f"{pooled.correct} correct{best}); want a lower precision or --min-labels"
        )
    return pooled, bands


def _fit(
    sample: Sample, selected: np.ndarray, gold: int, precision: float, by: Literal["estimate", "lower"], min_labels: int
) -> Fit:
    """Find the lowest threshold at which the selected labels reach the precision."""
    rows = np.flatnonzero(selected)
    order = rows[np.argsort(-sample.score[rows], kind="stable")]
    score, correct = sample.score[order], np.cumsum(sample.correct[order])
    kept = np.arange(1, len(order) + 1)
    # a threshold keeps all or none of the labels with equal scores
    ends = np.append(score[1:] != score[:-1], True) if len(order) else np.zeros(0, bool)
    ends &= kept >= min_labels
    n, k = kept[ends], correct[ends]
    none = Fit(labels=len(rows), correct=int(sample.correct[rows].sum()), gold=gold, threshold=None)
    if not len(n):
        return none
    reached = np.flatnonzero((k / n if by == "estimate" else wilson(k, n)[0]) >= precision)
    best = {"best_precision": round(float((k / n).max()), 6)}
    if not len(reached):
        return none.model_copy(update=best)
    last = int(n[reached[-1]])  # the threshold is the highest dropped score, as scores above it are kept
    threshold = float(score[last]) if last < len(score) else 0.0
    return _at(sample, selected, gold, threshold).model_copy(update=best)


def _at(sample: Sample, selected: np.ndarray, gold: int, threshold: float) -> Fit:
    """Result of a given threshold."""
    kept = selected & (sample.score > np.float32(threshold))
    n, k = int(kept.sum()), int((kept & sample.correct).sum())
    low, high = wilson(k, n) if n else (None, None)
    return Fit(
        labels=int(selected.sum()),
        correct=int((selected & sample.correct).sum()),
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
    """Table of the bands, or names, for a terminal."""
    rows: list[tuple[str, Band | NameFit]] = [(each.name, each) for each in result.names]
    rows = rows or [(f"from {band.from_mentions}", band) for band in result.bands]
    width, title = max(9, *(len(text) for text, _ in rows)), "name" if result.names else "mentions"
    head = f"{title:>{width}}  {'labels':>7}  {'threshold':>9}  {'kept':>7}  {'precision':>9}"
    out = [f"{head}  {'95 %':>15}  {'recall':>6}  how"]
    for text, band in rows:
        numbers = ["-", "0", "-", "-", "-"]
        if band.threshold is not None:
            interval = "-" if band.low is None else f"{100 * band.low:.1f} to {100 * (band.high or 0):.1f}"
            numbers = [f"{band.threshold:.4f}", f"{band.kept:,}", _percent(band.precision), interval]
            numbers.append(_percent(band.found / band.gold if band.gold else None))
        how = {"closed": f"nothing reaches it; best {_percent(band.best_precision)}"}.get(band.status, band.status)
        out.append(
            f"{text:>{width}}  {band.labels:>7,}  {numbers[0]:>9}  {numbers[1]:>7}  {numbers[2]:>9}  "
            f"{numbers[3]:>15}  {numbers[4]:>6}  {how}"
        )
    return out


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
