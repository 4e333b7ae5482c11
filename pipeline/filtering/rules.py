"""Filtering rules: which regions of a shard become labels, and the reason for each dropped one.

A rule is a function from a pool of regions to a boolean array, True for regions to drop, or None if
its setting is off. Rules are applied in the order of RULES, which is that of FilterConfig's fields.
Rules that compare regions only consider those that are not dropped yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import FilterConfig
from pipeline.config.filter_presets import PRESETS
from pipeline.errors import InputError
from pipeline.filtering.fitted import FilterTables
from pipeline.filtering.nms import over_limit, suppress
from pipeline.filtering.phrases import uniform
from pipeline.filtering.store import RegionShard
from pipeline.filtering.thresholds import NameThresholds
from pipeline.io.hashing import digest_json
from pipeline.system.plugins import Registry

log = logging.getLogger("glip_self_train")


def check(config: FilterConfig, fitted: FilterTables) -> None:
    """Check that the tables suit the settings, and that all rules are known.

    Raises:
        InputError: required phrase counts are missing, or were made with other rules; an unknown
            extra rule.
    """
    extra_rules(config)
    if config.balance_to is None:
        return
    if fitted.counts is None:
        raise InputError(
            "balance_to needs phrase counts: run count-phrases with the same settings, and pass its output as --counts"
        )
    if fitted.counts.rules != rules_of(config, fitted.thresholds_digest):
        raise InputError(
            "balance_to: the phrases were counted by other rules; run count-phrases with these settings again"
        )
    if config.balance_to < fitted.counts.min_count:
        raise InputError(
            f"balance_to {config.balance_to}: phrases were counted from {fitted.counts.min_count} on; "
            f"run count-phrases --min-count {config.balance_to}"
        )


@dataclass(frozen=True)
class FilterRule:
    """A rule of the user's own, registered in EXTRA_RULES.

    drops: pool and setting -> (size,) bool, True for regions to drop. version: part of the
    fingerprint; another one makes labels again.
    """

    drops: Callable[[RegionPool, Any], np.ndarray]
    version: str = "1"


EXTRA_RULES: Registry[FilterRule] = Registry("filter_rules", {})
"""Rules by their names in the setting ``extra_rules``, which are the reasons in the counts."""


def extra_rules(config: FilterConfig) -> dict[str, FilterRule]:
    """The rules of ``extra_rules``, in the order of their names, in which they apply.

    Raises:
        InputError: no such rule.
    """
    rules = {}
    for name in sorted(config.extra_rules):
        rule = None if name in REASONS else EXTRA_RULES.get(name)
        if rule is None:
            known = ", ".join(EXTRA_RULES.names()) or "those that are registered, of which there are none"
            raise InputError(f"filter_boxes.extra_rules: found {name!r}; want one of {known}")
        rules[name] = rule
    return rules


def versioned(config: FilterConfig) -> dict[str, Any]:
    """Resolved rules for footers and fingerprints, extra ones with their versions."""
    rules = config.effective()
    for name, rule in extra_rules(config).items():
        rules["extra_rules"][name] = [rules["extra_rules"][name], rule.version]
    return rules


def rules_of(config: FilterConfig, thresholds_digest: str) -> str:
    """Digest of the rules with which kept regions are counted."""
    others = {"balance_to": None, "ignore_above": None, "uncertain_above": 0.0}
    config = config.model_copy(update=others)
    return digest_json({**versioned(config), "thresholds": thresholds_digest})


def preset_of(config: FilterConfig) -> str:
    """Name of the preset with the same rules; "" if there is none."""
    rules = config.effective()
    return next((name for name in PRESETS if FilterConfig(preset=name).effective() == rules), "")


def open_regions(path: str | Path, config: FilterConfig, fitted: FilterTables = FilterTables()) -> RegionShard:
    """Open a shard, restricted to regions that score high enough to be kept, ignored or uncertain."""
    shard = RegionShard(path)
    lowest = lowest_score(config, fitted)
    shard.restrict(scores(shard, config) >= (lowest if shard.names is None else min(lowest, config.uncertain_above)))
    return shard


def lowest_score(config: FilterConfig, fitted: FilterTables) -> float:
    """Score from which regions can be kept or ignored."""
    low = config.threshold if fitted.thresholds is None else fitted.thresholds.lowest
    low = min(low, config.threshold) if isinstance(fitted.thresholds, NameThresholds) else low
    return min(low, low if config.ignore_above is None else config.ignore_above)


def warn_of_floor(path: str, config: FilterConfig, lowest: float) -> None:
    """Warn if a threshold is below the score from which pseudo-label stored all regions."""
    try:
        complete = RegionShard(path).complete_above
    except InputError:  # the shard fails with it
        return
    if config.score_by == "score" and lowest < complete:
        log.warning(
            "threshold: found %g; want %.2g or more: of regions that score lower, %s has only a part (pseudo-label's "
            "floor is a probability, before centerness; floor=%.2g would store them all)",
            lowest, complete, path, lowest**2,
        )  # fmt: skip


def scores(shard: RegionShard, config: FilterConfig) -> np.ndarray:
    """(size,) float32 scores as selected by ``score_by``.

    Raises:
        InputError: the shard has no such scores.
    """
    if config.score_by == "score":
        return shard.numbers("score")
    column = config.score_by if config.score_by in ("verifier", "verified") else "region_text"
    if column not in shard.columns:
        stage = "verify apply" if column == "verified" else "rescore"
        raise InputError(
            f"{shard.path}: has no column {column}, which score_by={config.score_by} needs; run {stage} on the "
            "store, or set score_by=score"
        )
    if config.score_by != "geometric":
        return shard.numbers(column)
    return np.asarray(np.sqrt(shard.numbers("score") * np.clip(shard.numbers("region_text"), 0, None)))


class RegionPool:
    """Regions of a shard, and the reasons of those dropped so far. Arrays are (size,)."""

    def __init__(self, shard: RegionShard, config: FilterConfig, fitted: FilterTables) -> None:
        self.shard, self.config, self.fitted = shard, config, fitted
        self.score = scores(shard, config)
        self.reason = np.zeros(shard.size, np.uint8)

    def remaining(self) -> np.ndarray:
        """Rows that are not dropped."""
        return np.flatnonzero(self.reason == KEEP)

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Widths and heights in pixels, float32."""
        x1, y1, x2, y2 = (self.shard.numbers(c) for c in ("x1", "y1", "x2", "y2"))
        return x2 - x1, y2 - y1

    def area_share(self) -> np.ndarray:
        """Share of the image, 0..1."""
        width, height = self.sides()
        image = self.shard.numbers("height").astype(np.float64) * self.shard.numbers("width")
        return np.asarray(width * height / image)

    def per_image(self, values: np.ndarray | None = None) -> np.ndarray:
        """(images,) number of remaining regions of each image, or the sum of their ``values``."""
        codes, keys = self.shard.keys()
        rows = self.remaining()
        return np.bincount(codes[rows], None if values is None else values[rows], minlength=len(keys))

    def among_remaining(self, rule: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Apply a rule that maps the remaining rows to booleans."""
        rows = self.remaining()
        bad = np.zeros(self.shard.size, bool)
        bad[rows] = rule(rows)
        return bad


Rule = Callable[[RegionPool], "np.ndarray | None"]


def below_threshold(pool: RegionPool) -> np.ndarray:
    fitted, threshold = pool.fitted.thresholds, pool.config.threshold
    if isinstance(fitted, NameThresholds):
        fitted.check(pool.shard.names, pool.shard.path)
        codes, texts = pool.shard.texts()
        threshold = fitted.of(texts.to_pylist(), threshold)[codes]
    elif fitted is not None:
        codes, texts = pool.shard.texts()
        mentions = np.zeros(len(texts), np.int64) if pool.fitted.counts is None else pool.fitted.counts.of(texts)[0]
        return np.asarray(~(pool.score > fitted.of(mentions)[codes]))  # also True for nan
    return ~(pool.score >= threshold if pool.config.include_equal else pool.score > threshold)


def no_area(pool: RegionPool) -> np.ndarray:
    width, height = pool.sides()
    return ~((width > 0) & (height > 0))


def too_few_teachers(pool: RegionPool) -> np.ndarray | None:
    if pool.config.min_agreed is None:
        return None
    if "agreed" not in pool.shard.columns:
        raise InputError(
            f"{pool.shard.path}: has no column agreed, which min_agreed needs; run merge-regions on the stores of "
            "several teachers, or set min_agreed=null"
        )
    return np.asarray(pool.shard.numbers("agreed") < pool.config.min_agreed)


def not_best_of_phrase(pool: RegionPool) -> np.ndarray | None:
    limit = pool.config.best_per_phrase
    if limit is None:
        return None
    phrase = pool.shard.phrase_ids()
    return pool.among_remaining(lambda rows: over_limit(pool.score[rows], phrase[rows], limit))


def beyond_number(pool: RegionPool) -> np.ndarray | None:
    if not pool.config.phrase_number or not pool.shard.total or pool.shard.names is not None:
        return None  # class names state no number
    if "number" not in pool.shard.columns:
        raise InputError(
            f"{pool.shard.path}: has no column number, which phrase_number needs; run parse-phrases (with rules=3) and "
            "pseudo-label again, or set phrase_number=false"
        )
    stated, phrase = pool.shard.numbers("number"), pool.shard.numbers("phrase_row")
    limit = np.where(stated >= 1, stated, np.inf)  # 0: any; null, which is nan: not known
    return pool.among_remaining(lambda rows: over_limit(pool.score[rows], phrase[rows], limit[rows]))


def too_small(pool: RegionPool) -> np.ndarray | None:
    side, share = pool.config.min_box_side, pool.config.min_area_share
    if not (side or share):
        return None
    return np.asarray((np.minimum(*pool.sides()) < side) | (pool.area_share() < share))


def too_large(pool: RegionPool) -> np.ndarray | None:
    if pool.config.max_area_share >= 1:
        return None
    return pool.area_share() > pool.config.max_area_share


def aspect(pool: RegionPool) -> np.ndarray | None:
    if pool.config.max_aspect is None:
        return None
    width, height = pool.sides()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.maximum(width / height, height / width) > pool.config.max_aspect)


def same_text_overlap(pool: RegionPool) -> np.ndarray | None:
    shard, iou = pool.shard, pool.config.same_text_iou
    synonyms = shard.names is not None and any(shard.names.synonyms)
    if iou is None and not synonyms:
        return None
    codes, texts = shard.texts()
    group = shard.keys()[0].astype(np.int64) * len(texts) + codes
    if iou is None:  # among synonyms as pseudo-label did among the boxes of each
        return _overlap(pool, group, shard.phrase_nms, shard.numbers("phrase_row"))
    return _overlap(pool, group, iou)


def cross_phrase_overlap(pool: RegionPool) -> np.ndarray | None:
    iou = pool.config.cross_phrase_iou
    return None if iou is None else _overlap(pool, pool.shard.keys()[0], iou)


def near_identical(pool: RegionPool) -> np.ndarray | None:
    iou = pool.config.near_identical_iou
    return None if iou is None else _overlap(pool, pool.shard.keys()[0], iou, pool.shard.phrase_ids())


def _overlap(pool: RegionPool, group: np.ndarray, iou: float, spare: np.ndarray | None = None) -> np.ndarray:
    boxes = pool.shard.boxes()
    return pool.among_remaining(
        lambda rows: suppress(
            boxes[rows], pool.score[rows], group[rows], iou, spare=None if spare is None else spare[rows]
        )
    )


def image_below_threshold(pool: RegionPool) -> np.ndarray | None:
    if pool.config.image_threshold is None:
        return None
    counts = pool.per_image((pool.score > pool.config.image_threshold).astype(np.int64))
    return np.asarray(counts[pool.shard.keys()[0]] < 1)


def image_score_low(pool: RegionPool) -> np.ndarray | None:
    if pool.config.min_image_score is None:
        return None
    probable = pool.config.score_by in ("score", "verifier", "verified")
    value = pool.score if probable else pool.shard.numbers("region_text")
    mean = pool.per_image(value.astype(np.float64)) / np.maximum(pool.per_image(), 1)
    return np.asarray(~(mean > pool.config.min_image_score)[pool.shard.keys()[0]])


def phrase_cap(pool: RegionPool) -> np.ndarray | None:
    limit = pool.config.max_per_phrase_text
    if limit is None:
        return None
    codes, _ = pool.shard.texts()
    return pool.among_remaining(lambda rows: over_limit(pool.score[rows], codes[rows], limit))


def balanced_away(pool: RegionPool) -> np.ndarray | None:
    """MetaCLIP's balancing (Demystifying CLIP Data, 3.4): a text's n > t entries stay with p = t / n."""
    if pool.config.balance_to is None:
        return None
    assert pool.fitted.counts is not None
    codes, texts = pool.shard.texts()
    _, kept = pool.fitted.counts.of(texts)
    share = pool.config.balance_to / np.maximum(kept, 1)
    number = uniform(pool.shard.name, pool.shard.phrase_ids(), pool.shard.numbers("rank"))
    return np.asarray(number >= share[codes])


def too_few_regions(pool: RegionPool) -> np.ndarray | None:
    return pool.per_image()[pool.shard.keys()[0]] < pool.config.min_regions if pool.config.min_regions > 0 else None


RULES: tuple[Rule, ...] = (
    below_threshold, no_area, too_few_teachers, not_best_of_phrase, beyond_number, too_small, too_large, aspect,
    same_text_overlap, cross_phrase_overlap, near_identical,
    image_below_threshold, image_score_low, phrase_cap, balanced_away, too_few_regions,
)  # fmt: skip
"""Rules in the order of application; their names are the reasons in the counts."""
BEFORE_EXTRA = RULES.index(aspect) + 1
"""Number of rules that apply before the extra ones."""
REASONS = ("keep", "kept_as_ignore", "kept_as_uncertain", *(rule.__name__ for rule in RULES))
KEEP, IGNORE, UNCERTAIN, BELOW = 0, 1, 2, 3


@dataclass(frozen=True)
class FilterResult:
    """Result for a shard.

    reason: (size,) indices into REASONS and, behind them, ``extra``, the names of the extra rules.
    unread: number of regions with too low scores.
    """

    reason: np.ndarray
    unread: int
    extra: tuple[str, ...] = ()

    @property
    def keeps(self) -> np.ndarray:
        """(size,) True for labels."""
        return np.asarray(self.reason == KEEP)

    @property
    def stays(self) -> np.ndarray:
        """(size,) True for labels, ignore regions and those of uncertain names."""
        return self.reason <= UNCERTAIN

    def counts(self) -> dict[str, int]:
        """Number of regions by reason, including "keep"; the sum is the shard's number of regions."""
        names = (*REASONS, *self.extra)
        counts = np.bincount(self.reason, minlength=len(names))
        counts[BELOW] += self.unread
        return {names[i]: int(n) for i, n in enumerate(counts) if n}


def apply_rules(shard: RegionShard, config: FilterConfig, fitted: FilterTables = FilterTables()) -> FilterResult:
    """Apply the rules to a shard that :func:`open_regions` opened for them, or for lower thresholds.

    Raises:
        InputError: the shard lacks a column that a rule needs, an extra rule returns no mask, or as
            :func:`check`.
    """
    check(config, fitted)
    pool = RegionPool(shard, config, fitted)
    extra = extra_rules(config)
    rules = list(enumerate(RULES, start=BELOW))
    rules[BEFORE_EXTRA:BEFORE_EXTRA] = enumerate((_extra(*item) for item in extra.items()), start=len(REASONS))
    for number, rule in rules:
        bad = rule(pool)
        if bad is not None:
            pool.reason[(pool.reason == KEEP) & bad] = number
    if config.ignore_above is not None:
        unsure = (pool.reason == BELOW) & (pool.score > config.ignore_above) & ~no_area(pool)
        pool.reason[unsure & (pool.per_image()[shard.keys()[0]] > 0)] = IGNORE
    if shard.names is not None:
        _mark_uncertain(pool)
    return FilterResult(pool.reason, shard.total - shard.size, tuple(extra))


def _mark_uncertain(pool: RegionPool) -> None:
    """Mark the best region of each class name that has none kept or ignored in an image with labels."""
    ids, settled = pool.shard.phrase_ids(), pool.reason <= IGNORE
    unsure = (pool.score > pool.config.uncertain_above) & ~no_area(pool) & ~np.isin(ids, ids[settled])
    rows = np.flatnonzero(unsure & (pool.per_image()[pool.shard.keys()[0]] > 0))
    pool.reason[rows[~over_limit(pool.score[rows], ids[rows], 1)]] = UNCERTAIN


def _extra(name: str, rule: FilterRule) -> Rule:
    def drops(pool: RegionPool) -> np.ndarray:
        bad = np.asarray(rule.drops(pool, pool.config.extra_rules[name]))
        if bad.dtype != bool or bad.shape != (pool.shard.size,):
            raise InputError(
                f"filter rule {name}: found {bad.dtype} of the shape {bad.shape}; want bool of ({pool.shard.size},)"
            )
        return bad

    return drops
