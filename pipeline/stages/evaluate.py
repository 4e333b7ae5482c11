"""evaluate: a model on sets with gold boxes, through the same annotator that labels.

Predictions are committed shard by shard, as labels are; metrics come from them without the model.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import EvaluateConfig
from pipeline.errors import InputError, did_you_mean
from pipeline.evaluation.evaluation_set import EvaluationSet
from pipeline.evaluation.fixed_ap import best_of_each_class, fixed_ap
from pipeline.evaluation.frequencies import Frequencies, normalise_name, read_frequencies
from pipeline.evaluation.match_tables import MatchTables, absent_images, query_phrases, write_match_tables
from pipeline.evaluation.matching import match
from pipeline.evaluation.metrics import NEVER, ImageResult, coco_ap, queries_of
from pipeline.evaluation.predict import STAGE, VERSION, DetectShards
from pipeline.evaluation.predictions import read_predictions, write_coco
from pipeline.evaluation.protocols import SetSpec
from pipeline.evaluation.report import write_report
from pipeline.execution.inference import inference_workers
from pipeline.execution.options import DeviceOptions, WorkLeft
from pipeline.execution.run import run_workers
from pipeline.execution.worker import ShardJob
from pipeline.io.atomic import atomic_file, write_json
from pipeline.io.hashing import digest_file, digest_json, fingerprint
from pipeline.io.model_folder import model_revision
from pipeline.io.paths import join, local_folder
from pipeline.io.shard_patterns import expand_shards
from pipeline.stages.jobs import Evaluate

log = logging.getLogger("glip_self_train")
Metrics = dict[str, dict[str, float]]
KS = (1, 5, 10)
LVIS_ONLY = {"chunk_names", "chunk_detections", "class_detections"}
"""Settings that no other protocol looks at."""
METRICS = 3
"""What is made of predictions, which stay as they are; 3: names that no training image shows are rare; settings by set."""


def run(job: Evaluate) -> Metrics:
    """Evaluate a model folder on sets of shards; a second run only computes what is not there.

    Writes ``predictions/SET--SHARD.parquet``, ``evidence/``, ``predictions-SET.json`` (COCO's results format),
    ``report.md`` with plots, and last ``metrics.json``.

    Returns:
        set name -> its protocol's metrics, percents; ``images`` and ``queries`` are counts.

    Raises:
        InputError: no usable model, shard or set. RunError: a shard failed.
    """
    out, config = local_folder(job.out, "an evaluation"), job.settings
    shards = {name: [s for path in paths for s in expand_shards(path)] for name, paths in job.sets.items()}
    if unknown := sorted(set(job.frequencies) - set(shards)):
        told = "; ".join(f"{name}: no such set{did_you_mean(name, sorted(shards))}" for name in unknown)
        raise InputError(f"frequencies of {told}")
    abouts = {name: read_frequencies(path) for name, path in job.frequencies.items()}
    sets = [EvaluationSet.open(name, paths, config) for name, paths in sorted(shards.items())]
    for name in sorted(set(config.protocols) - set(shards)):  # a recipe may name more sets than are measured now
        log.warning("protocols.%s: no such set here%s", name, did_you_mean(name, sorted(shards)))
    for one in sets:
        log.info("%s: measured by the protocol %s", one.spec.name, one.spec.protocol)
    plan = _Plan(config, job.model, model_revision(job.model), sets, abouts)
    metrics_file = out / "metrics.json"
    if metrics_file.is_file():
        saved = json.loads(metrics_file.read_text())
        if saved.get("fingerprint") == plan.fingerprint_of():
            measured: Metrics = saved["sets"]
            return measured
    if job.check_only:
        raise WorkLeft
    _detect(plan, out / "predictions", job)
    found: Metrics = {}
    evidence: dict[str, MatchTables] = {}
    for one in sets:
        name = one.spec.name
        found[name], evidence[name] = _measure(plan, one, out)
        log.info("%s: %s", name, ", ".join(f"{k} {v:.1f}" for k, v in found[name].items()))
    document = {
        "fingerprint": plan.fingerprint_of(),
        "model": plan.revision,
        "sets": found,
        "protocols": {s.spec.name: s.spec.protocol for s in sets},
        "settings": {s.spec.name: plan.settings(s.spec) for s in sets},
        "means": _means(sets, found),
    }
    write_report(out, document, evidence)
    write_json(metrics_file, document)
    return found


@dataclass(frozen=True)
class _Plan:
    """What is evaluated, and the fingerprints that this gives."""

    config: EvaluateConfig
    model: str
    revision: str
    sets: Sequence[EvaluationSet]
    abouts: Mapping[str, Frequencies]

    def fingerprint_of(self) -> str:
        """Of the metrics."""
        inputs = {f"{s.spec.name}/{Path(path).name}": digest_file(path) for s in self.sets for path in s.shards}
        inputs |= {f"{s.spec.name}: names": digest_json(list(s.spec.names)) for s in self.sets}
        inputs |= {f"{name}: frequencies": about.digest for name, about in self.abouts.items()}
        return fingerprint(
            STAGE, version=VERSION, config=self.config, inputs=inputs, model=self.revision, metrics=str(METRICS)
        )

    def settings(self, spec: SetSpec) -> dict[str, Any]:
        """What one set's figures depend on besides model and shards: figures of other settings say nothing about the model."""
        lvis = spec.protocol == "lvis"
        others = {"max_detections"} if lvis else LVIS_ONLY
        used = self.config.model_dump(mode="json", exclude={"protocols", "batch_size", *others})
        about = self.abouts.get(spec.name) if lvis else None
        return used | ({"frequencies": about.digest[:12]} if about else {})

    def shard_mark(self, spec: SetSpec, path: str) -> str:
        """Of one shard's predictions: of the settings only those that it depends on."""
        elsewhere = {"protocols", "class_detections"} | (set() if spec.protocol == "lvis" else LVIS_ONLY)
        return fingerprint(
            f"{STAGE}/predictions",
            version=VERSION,
            config=self.config.model_dump(mode="json", exclude=elsewhere),
            inputs={"shard": digest_file(path), "names": digest_json(list(spec.names))},
            model=self.revision,
            protocol=spec.protocol,
        )


def _detect(plan: _Plan, out: Path, options: DeviceOptions) -> None:
    jobs = {
        name: (ShardJob(path, name), s.spec)
        for s in sorted(plan.sets, key=lambda s: s.spec.protocol == "lvis")  # each kind's model is loaded once
        for name, path in zip(s.job_names, s.shards, strict=True)
    }
    specs = {name: spec for name, (_, spec) in jobs.items()}
    detecting = partial(DetectShards, plan.config, plan.model, specs, str(out))
    workers = inference_workers(detecting, options, len(jobs))
    report = run_workers(
        STAGE, [job for job, _ in jobs.values()], out, workers, options,
        fingerprint_of=lambda job: plan.shard_mark(jobs[job.name][1], job.path),
    )  # fmt: skip
    for unit, tally in report.tallies.items():
        for reason, n in tally.dropped.items():
            log.warning("%d %s lost: %s; their gold counts as missed", n, unit, reason)


def _measure(plan: _Plan, one: EvaluationSet, out: Path) -> tuple[dict[str, float], MatchTables]:
    spec, config = one.spec, plan.config
    about = plan.abouts.get(spec.name, Frequencies())
    predictions = [
        read_predictions(join(out / "predictions", f"{name}.parquet"), count)
        for name, count in zip(one.job_names, one.records.counts, strict=True)
    ]
    results, keys, phrases = one.results(predictions, about)
    if spec.protocol == "lvis":
        results = best_of_each_class(results, config.class_detections)
        matches = match(results, federated=True)
    else:
        matches = match(results, config.max_detections)
    with atomic_file(out / f"predictions-{spec.name}.json") as file:
        write_coco(file, results, keys)
    queries = queries_of(results)
    asked = query_phrases(queries, spec.names, phrases)
    counts = about.counts or Counter(map(normalise_name, asked))
    evidence = MatchTables(
        protocol=spec.protocol,
        names=spec.names,
        gold=digest_json([digest_file(path) for path in one.shards]),
        matches=matches,
        queries=queries,
        phrases=asked,
        groups=about.groups_of(spec.names),
        counts={n: counts[n] for n in map(normalise_name, sorted({*spec.names, *asked})) if n in counts},
        counts_from="training images" if about.counts else "images of this set",
        absent_pairs=absent_images(results, len(spec.names)),
    )
    write_match_tables(out / "evidence", spec.name, evidence)
    return {"images": len(results), **_metrics(spec, config, results, evidence)}, evidence


def _metrics(
    spec: SetSpec, config: EvaluateConfig, results: Sequence[ImageResult], evidence: MatchTables
) -> dict[str, float]:
    queries = evidence.queries
    asked = max(len(queries.image), 1)

    def shares(name: str, first: np.ndarray) -> dict[str, float]:
        return {f"{name}_{k}": 100.0 * float((first < min(k, NEVER)).sum()) / asked for k in KS}

    if spec.protocol == "lvis":
        return fixed_ap(evidence.matches, [normalise_name(n) for n in spec.names], evidence.groups)
    if spec.protocol in {"coco", "odinw"}:
        return coco_ap(results, spec.names, config.max_detections)
    if spec.protocol == "refcoco":
        return shares("precision_at", queries.first) | {"queries": len(queries.image)}
    found = shares("recall_at", queries.first) | {"queries": len(queries.image)}
    if spec.protocol == "flickr":
        return found | shares("merged_recall_at", queries.first_merged)
    return found | coco_ap(results, spec.names, config.max_detections)


def _means(sets: Sequence[EvaluationSet], found: Metrics) -> dict[str, dict[str, float]]:
    """ODinW is reported as the mean AP over its sets."""
    aps = [found[s.spec.name]["ap"] for s in sets if s.spec.protocol == "odinw"]
    return {"odinw": {"ap": float(np.mean(aps)), "sets": len(aps)}} if aps else {}
