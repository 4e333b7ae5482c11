"""filter-boxes: which stored regions become labels. Reads the store only: no image, no teacher, no GPU.

Rules are columns of booleans over a shard's regions; each region that goes has one reason, the first rule it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import FilterConfig
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.tables import footer, read_table, write_table
from pipeline.progress import Progress
from pipeline.records import LABELS, REGIONS, STORE_VERSION
from pipeline.stages.base import ShardJob, run_shards
from pipeline.stats import ShardReport, StageReport, Tally

STAGE = "filter-boxes"


def run(
    config: FilterConfig,
    regions: Sequence[str],
    out: str | Path,
    *,
    progress: Progress | None = None,
    workers: int = 1,
    max_failed: int = 0,
) -> StageReport:
    """``out/<shard>.parquet`` (records.LABELS) for every regions file: what is kept, and what travels as ignore."""
    jobs = [
        ShardJob(
            path,
            stem(path),
            fingerprint(STAGE, version=STORE_VERSION, config=config, inputs={"regions": digest_file(path)}),
        )
        for path in regions
    ]
    work = partial(_filter_shard, config=config, out=str(out))
    return run_shards(STAGE, jobs, out, work, progress=progress, workers=workers, max_failed=max_failed)


def _filter_shard(job: ShardJob, *, config: FilterConfig, out: str) -> ShardReport:
    table = read_table(job.path, REGIONS)
    reasons = judge(table, config)
    tally, images = Tally(), Tally()
    counts = {r: int((reasons == r).sum()) for r in np.unique(reasons)}
    tally.keep(counts.pop("keep", 0))
    for reason, n in counts.items():
        tally.drop("kept_as_ignore" if reason == "ignore" else reason, n)
    with_label = pc.count_distinct(table["key"].filter(pa.array(reasons == "keep"))).as_py()
    images.keep(with_label)
    images.drop("no_label", pc.count_distinct(table["key"]).as_py() - with_label)
    stays = (reasons == "keep") | (reasons == "ignore")
    status = pa.DictionaryArray.from_arrays(
        pa.array((reasons[stays] == "ignore").astype(np.int8)), pa.array(["keep", "ignore"])
    )
    name = f"{job.name}.parquet"
    output = write_table(
        join(out, name),
        table.filter(pa.array(stays)).append_column(LABELS.field("status"), status),
        LABELS,
        {
            "stage": STAGE,
            "fingerprint": job.fingerprint,
            "version": str(STORE_VERSION),
            "rules": config.model_dump_json(),
            "teacher": footer(job.path).get("teacher", ""),
        },
    )
    return job.report(STAGE, {name: output}, {"regions": tally, "images": images})


def judge(table: pa.Table, config: FilterConfig) -> np.ndarray:
    """(n,) of "keep", "ignore" or the reason a region goes. Rules in the order of FilterConfig's fields.

    Rules on single regions are vectorised over the shard; rules between regions look at kept regions only.
    """
    score = table["score"].to_numpy()
    x1, y1, x2, y2 = (table[c].to_numpy() for c in ("x1", "y1", "x2", "y2"))
    width, height = x2 - x1, y2 - y1
    reasons = np.full(len(score), "keep", dtype="<U24")

    def drop(reason: str, bad: np.ndarray) -> None:
        reasons[(reasons == "keep") & bad] = reason

    drop("below_threshold", ~(score > config.threshold))
    drop("no_area", ~((width > 0) & (height > 0)))
    if config.best_per_phrase is not None:
        drop(
            "not_best_of_phrase",
            _beyond(reasons == "keep", table["phrase_row"].to_numpy(), score, config.best_per_phrase),
        )
    if config.min_box_side > 0:
        drop("too_small", np.minimum(width, height) < config.min_box_side)
    if config.max_area_share < 1:
        area = table["height"].to_numpy().astype(np.float64) * table["width"].to_numpy()
        drop("too_large", width * height > config.max_area_share * area)
    if config.max_aspect is not None:
        with np.errstate(divide="ignore"):
            drop("aspect", np.maximum(width / height, height / width) > config.max_aspect)
    keys = _codes(table["key"])
    if config.cross_phrase_iou is not None:
        drop(
            "near_identical",
            _near_identical(reasons == "keep", keys, x1, y1, x2, y2, score, config.cross_phrase_iou),
        )
    if config.max_per_phrase_text is not None:
        texts = _codes(pc.utf8_lower(table["phrase"]))
        drop("phrase_cap", _beyond(reasons == "keep", texts, score, config.max_per_phrase_text))
    if config.min_regions > 0 and len(keys):
        per_image = np.bincount(keys[reasons == "keep"], minlength=keys.max() + 1)
        drop("too_few_regions", per_image[keys] < config.min_regions)
    if config.ignore_above is not None:
        with_label = np.zeros(keys.max() + 1 if len(keys) else 0, bool)
        with_label[keys[reasons == "keep"]] = True
        unsure = (reasons == "below_threshold") & (score > config.ignore_above)
        reasons[unsure & with_label[keys] & (width > 0) & (height > 0)] = "ignore"
    return reasons


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().dictionary_encode().indices.to_numpy()


def _beyond(candidates: np.ndarray, group: np.ndarray, score: np.ndarray, limit: int) -> np.ndarray:
    """True for candidates that are not among the ``limit`` best of their group; ties go to the earlier row."""
    rows = np.flatnonzero(candidates)
    order = rows[np.lexsort((rows, -score[rows], group[rows]))]
    sorted_group = group[order]
    first = np.concatenate([[True], sorted_group[1:] != sorted_group[:-1]]) if len(order) else np.zeros(0, bool)
    starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0)) if len(order) else np.zeros(0, int)
    beyond = np.zeros(len(candidates), bool)
    beyond[order[np.arange(len(order)) - starts >= limit]] = True
    return beyond


def _near_identical(
    candidates: np.ndarray,
    keys: np.ndarray,
    x1: np.ndarray,
    y1: np.ndarray,
    x2: np.ndarray,
    y2: np.ndarray,
    score: np.ndarray,
    iou: float,
) -> np.ndarray:
    """NMS within an image over all its phrases, by torchvision's batched operator."""
    import torch
    from torchvision.ops import batched_nms

    rows = np.flatnonzero(candidates)
    boxes = torch.from_numpy(np.stack([x1[rows], y1[rows], x2[rows], y2[rows]], 1).astype(np.float64))
    kept = batched_nms(
        boxes,
        torch.from_numpy(score[rows].copy()).double(),
        torch.from_numpy(keys[rows].astype(np.int64)),
        iou,
    )
    gone = np.ones(len(rows), bool)
    gone[kept.numpy()] = False
    result = np.zeros(len(candidates), bool)
    result[rows[gone]] = True
    return result
