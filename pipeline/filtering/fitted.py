"""Input tables of filtering besides the settings: calibrated thresholds and phrase counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.errors import InputError
from pipeline.filtering.phrases import PhraseCounts, read_counts
from pipeline.filtering.thresholds import NameThresholds, Thresholds, read_thresholds
from pipeline.io.hashing import digest_file, digest_json


@dataclass(frozen=True)
class FilterTables:
    """Thresholds, calibrated or by name, and phrase counts. ``digest``: of both files' contents."""

    thresholds: Thresholds | NameThresholds | None = None
    counts: PhraseCounts | None = None
    digest: str = ""
    thresholds_digest: str = ""


def digests(thresholds: str | Path | None, counts: str | Path | None) -> dict[str, str]:
    """Digests of the given files, for a fingerprint."""
    given = {"thresholds": thresholds, "counts": counts}
    return {name: digest_file(path) for name, path in given.items() if path is not None}


def load_tables(thresholds: str | Path | None, counts: str | Path | None) -> FilterTables:
    """Read the tables; cached by content.

    Raises:
        InputError: a file is missing or of another kind, or thresholds with bands are given without
            suitable counts.
    """
    by_name = digests(thresholds, counts)
    digest = digest_json(by_name) if by_name else ""
    return _load(str(thresholds or ""), str(counts or ""), by_name.get("thresholds", ""), digest)


@lru_cache(maxsize=2)
def _load(thresholds: str, counts: str, thresholds_digest: str, digest: str) -> FilterTables:
    fitted = FilterTables(
        read_thresholds(thresholds) if thresholds else None,
        read_counts(counts) if counts else None,
        digest,
        thresholds_digest,
    )
    if isinstance(fitted.thresholds, Thresholds) and len(fitted.thresholds.bands) > 1:
        if fitted.counts is None:
            raise InputError(
                f"{thresholds}: has {len(fitted.thresholds.bands)} bands of phrase frequency; want the phrase counts "
                "too (--counts, a file of count-phrases)"
            )
        second = fitted.thresholds.bands[1].from_mentions
        if second < fitted.counts.min_count:
            raise InputError(
                f"{counts}: has phrases from {fitted.counts.min_count} mentions on, but the second band of "
                f"{thresholds} begins at {second}; run count-phrases --min-count {second}"
            )
    return fitted
