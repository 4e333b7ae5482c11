"""Entry points of sweep-thresholds (``filter-boxes --sweep``), count-phrases and calibrate."""

from __future__ import annotations

from typing import Any

from pipeline.filtering import calibration, counting
from pipeline.filtering import sweep as sweeping
from pipeline.filtering.thresholds import Thresholds
from pipeline.io.shard_patterns import expand_shards
from pipeline.stages.jobs import Calibrate, CountPhrases, PhraseCounts, SweepThresholds


def sweep(job: SweepThresholds) -> dict[str, Any]:
    """Run :func:`pipeline.filtering.sweep.sweep`."""
    return sweeping.sweep(
        job.settings, expand_shards(job.regions, suffix=".parquet"), job.thresholds,
        gold=job.gold, iou=job.iou, progress=job.progress,
    )  # fmt: skip


def count_phrases(job: CountPhrases) -> PhraseCounts:
    """Run :func:`pipeline.filtering.counting.count_phrases`."""
    n, file = counting.count_phrases(
        job.settings, expand_shards(job.regions, suffix=".parquet"), job.out,
        thresholds=job.thresholds, counts=job.counts, min_count=job.min_count, progress=job.progress,
    )  # fmt: skip
    return PhraseCounts(phrases=n, min_count=job.min_count, bytes=file.bytes, sha256=file.sha256)


def calibrate(job: Calibrate) -> Thresholds:
    """Run :func:`pipeline.filtering.calibration.calibrate`."""
    return calibration.calibrate(
        job.settings, expand_shards(job.regions, suffix=".parquet"), job.gold, job.out,
        verdicts=job.verdicts, precision=job.precision, counts=job.counts, bands=job.bands, by=job.by,
        min_labels=job.min_labels, iou=job.iou, progress=job.progress,
    )  # fmt: skip
