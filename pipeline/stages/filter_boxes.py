"""filter-boxes: select the stored regions that become labels, without images or teacher.

Each dropped region is counted under the first rule that it fails (pipeline/filtering/rules.py).
"""

from __future__ import annotations

import json
import logging
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.config import FilterConfig
from pipeline.data.image_names import FOOTER
from pipeline.data.records import LABELS, MASK, NAMED_LABELS, STORE_VERSION
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob
from pipeline.filtering.fitted import digests, load_tables
from pipeline.filtering.rules import apply_rules, check, lowest_score, open_regions, preset_of, versioned, warn_of_floor
from pipeline.filtering.store import RegionShard
from pipeline.filtering.thresholds import NameThresholds, Thresholds
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import write_table
from pipeline.stages.jobs import FilterBoxes

log = logging.getLogger("glip_self_train")

STAGE = "filter-boxes"


def run(job: FilterBoxes) -> StageReport:
    """Write kept and ignored regions to ``out/<shard>.parquet`` (records.LABELS or NAMED_LABELS, and MASK).

    Raises:
        InputError: an input is missing or invalid.
        RunError: more than ``max_failed`` shards failed.
    """
    config, thresholds, counts = job.settings, job.thresholds, job.counts
    fitted = load_tables(thresholds, counts)
    check(config, fitted)
    if isinstance(fitted.thresholds, Thresholds) and (other := fitted.thresholds.differing(versioned(config))):
        log.warning(
            "%s was fitted with other rules, so its precision does not hold for these: %s", thresholds, "; ".join(other)
        )
    paths = expand_shards(job.regions, suffix=".parquet")
    if isinstance(fitted.thresholds, NameThresholds):
        fitted.thresholds.check(RegionShard(paths[0]).names, paths[0])
    warn_of_floor(paths[0], config, lowest_score(config, fitted))
    tables = digests(thresholds, counts)

    def fingerprint_of(shard: ShardJob) -> str:
        inputs = {"regions": digest_file(shard.path), **tables}
        return fingerprint(STAGE, version=STORE_VERSION, config=versioned(config), inputs=inputs)

    work = partial(_filter_shard, config=config, out=job.out, thresholds=thresholds, counts=counts)
    jobs = [ShardJob(path, stem(path)) for path in paths]
    return run_shards(STAGE, jobs, job.out, work, job, fingerprint_of=fingerprint_of)


def _filter_shard(
    job: ShardJob, *, config: FilterConfig, out: str, thresholds: str | None, counts: str | None
) -> ShardReport:
    fitted = load_tables(thresholds, counts)
    shard = open_regions(job.path, config, fitted)
    verdict = apply_rules(shard, config, fitted)
    regions, images = Tally(), Tally()
    for reason, n in verdict.counts().items():
        if reason == "keep":
            regions.keep(n)
        else:
            regions.drop(reason, n)
    codes, keys = shard.keys()
    with_label = int((np.bincount(codes[verdict.keeps], minlength=len(keys)) > 0).sum())
    images.keep(with_label)
    images.drop("no_label", shard.images - with_label)
    stays, schema, statuses = verdict.stays, LABELS, ["keep", "ignore"]
    if shard.names is not None:
        schema, statuses = NAMED_LABELS, [*statuses, "uncertain"]
    if MASK.name in shard.columns:
        schema = schema.append(MASK)
    status = pa.DictionaryArray.from_arrays(verdict.reason[stays].astype(np.int8), pa.array(statuses))
    field = schema.get_field_index("status")
    table = shard.table(stays, schema.remove(field)).add_column(field, schema.field(field), status)
    notes = {
        "stage": STAGE,
        "fingerprint": job.fingerprint,
        "version": str(STORE_VERSION),
        "rules": json.dumps(versioned(config)),
        "preset": preset_of(config) if fitted.thresholds is None else "",
        "teacher": shard.footer.get("teacher", ""),
    }
    notes |= {name: shard.footer[name] for name in ("names", FOOTER, "teacher_licence") if shard.footer.get(name)}
    if fitted.digest:
        notes["tables"] = fitted.digest
    if fitted.thresholds is not None:
        notes["thresholds"] = fitted.thresholds_digest
    name = f"{job.name}.parquet"
    output = write_table(join(out, name), table, schema, notes)
    return job.report(STAGE, {name: output}, {"regions": regions, "images": images})
