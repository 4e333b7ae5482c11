"""The tables that decide beside the settings: thresholds fitted on gold, and counts of a store's
phrases.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.errors import InputError
from pipeline.filtering.phrases import PhraseCounts, read_counts
from pipeline.filtering.thresholds import Thresholds, read_thresholds
from pipeline.io.hashing import digest_file, digest_json


@dataclass(frozen=True)
class FilterTables:
    """Tables beside the settings that decide, too: fitted thresholds and phrase counts. ``digest``
    of their contents.
    """

    thresholds: Thresholds | None = None
    counts: PhraseCounts | None = None
    digest: str = ""
    thresholds_digest: str = ""


def digests(thresholds: str | Path | None, counts: str | Path | None) -> dict[str, str]:
    """The contents of the tables, for a fingerprint; without those that there are none of."""
    given = {"thresholds": thresholds, "counts": counts}
    return {name: digest_file(path) for name, path in given.items() if path is not None}


def load_tables(thresholds: str | Path | None, counts: str | Path | None) -> FilterTables:
    """Read the tables; they are remembered by content.

    Raises:
        InputError: a file is missing or of another kind, or bands are given without the counts that
            tell them apart.
    """
    found = digests(thresholds, counts)
    return _load(
        str(thresholds or ""), str(counts or ""), found.get("thresholds", ""), digest_json(found) if found else ""
    )


@lru_cache(maxsize=2)
def _load(thresholds: str, counts: str, thresholds_digest: str, digest: str) -> FilterTables:
    fitted = FilterTables(
        read_thresholds(thresholds) if thresholds else None,
        read_counts(counts) if counts else None,
        digest,
        thresholds_digest,
    )
    if fitted.thresholds is not None and len(fitted.thresholds.bands) > 1:
        if fitted.counts is None:
            raise InputError(
                f"{thresholds}: has {len(fitted.thresholds.bands)} bands of phrase frequency; give the phrase counts, too "
                "(--counts, a file of count-phrases)"
            )
        second = fitted.thresholds.bands[1].from_mentions
        if second < fitted.counts.min_count:
            raise InputError(
                f"{counts}: holds phrases from {fitted.counts.min_count} mentions on, but the second band of {thresholds} "
                f"begins at {second}; run count-phrases --min-count {second}"
            )
    return fitted
