"""Counts of phrase texts in a store, as balancing and frequency bands require."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config import FilterConfig
from pipeline.data.records import STORE_VERSION
from pipeline.execution.progress import Progress, Silent
from pipeline.filtering.fitted import load_tables
from pipeline.filtering.phrases import COUNTS, text_hashes
from pipeline.filtering.rules import apply_rules, open_regions, rules_of
from pipeline.filtering.store import RegionShard
from pipeline.io.atomic import OutputFile
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_file, digest_json
from pipeline.io.tables import write_table

BUCKETS = 1 << 26


def count_phrases(
    config: FilterConfig,
    regions: Sequence[str],
    out: str | Path,
    *,
    thresholds: str | Path | None = None,
    counts: str | Path | None = None,
    min_count: int = 10,
    progress: Progress = Silent(),
) -> tuple[int, OutputFile]:
    """Write each phrase text's mentions and its regions kept by the rules (without ``balance_to``).

    Two passes over the store: the first counts in hash buckets, so that memory (256 MiB) does not
    grow with the number of distinct texts; the second counts exactly the texts whose bucket reached
    ``min_count``.

    Returns:
        Number of texts in the file, and its size and digest.
    """
    require_files(regions)
    config = config.model_copy(update={"balance_to": None})
    fitted = load_tables(thresholds, counts)
    progress.begin("count-phrases", 2 * len(regions), "shards")
    buckets = np.zeros(BUCKETS, np.uint32)
    for path in regions:
        codes, texts = RegionShard(path).texts()
        np.add.at(buckets, _bucket(text_hashes(texts)), np.bincount(codes, minlength=len(texts)).astype(np.uint32))
        progress.advance(1, "shards")
    totals: dict[str, list[int]] = {}
    for path in regions:
        shard = RegionShard(path)
        codes, texts = shard.texts()
        _, first = np.unique(shard.phrase_ids(), return_index=True)
        mentions = np.bincount(codes[first], minlength=len(texts))
        frequent = np.flatnonzero(buckets[_bucket(text_hashes(texts))] >= min_count)
        candidates = open_regions(path, config, fitted)
        kept_codes, kept_texts = candidates.texts()
        kept = np.bincount(kept_codes[apply_rules(candidates, config, fitted).keeps], minlength=len(kept_texts))
        kept_of = dict(zip(kept_texts.to_pylist(), kept.tolist(), strict=True))
        for text, n in zip(texts.take(pa.array(frequent)).to_pylist(), mentions[frequent].tolist(), strict=True):
            total = totals.setdefault(text, [0, 0])
            total[0] += n
            total[1] += kept_of.get(text, 0)
        progress.advance(1, "shards")
    rows = sorted((-n, text, kept) for text, (n, kept) in totals.items() if max(n, kept) >= min_count)
    table = pa.table([[t for _, t, _ in rows], [-n for n, _, _ in rows], [k for _, _, k in rows]], schema=COUNTS)
    inputs = digest_json({Path(p).name: digest_file(p) for p in regions})
    notes = {
        "version": str(STORE_VERSION),
        "rules": rules_of(config, fitted.thresholds_digest),
        "min_count": str(min_count),
    }
    return len(rows), write_table(out, table, COUNTS, {**notes, "stage": "count-phrases", "regions": inputs})


def _bucket(hashes: np.ndarray) -> np.ndarray:
    return (hashes & np.uint64(BUCKETS - 1)).astype(np.int64)
