"""evaluate: metrics of a model on sets with ground truth.

Predictions are committed shard by shard, as labels are; metrics are computed from them without the
model.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotators.base import own_score_agg
from pipeline.config import EvaluateConfig
from pipeline.errors import InputError, did_you_mean
from pipeline.evaluation.absence import PhrasePresence
from pipeline.evaluation.evaluation_set import EvaluationSet
from pipeline.evaluation.fixed_ap import best_of_each_class, fixed_ap
from pipeline.evaluation.frequencies import Frequencies, normalise_name, read_frequencies
from pipeline.evaluation.match_tables import MatchTables, absent_images, query_phrases, write_match_tables
from pipeline.evaluation.matching import match
from pipeline.evaluation.metrics import NEVER, ImageResult, coco_ap, queries_of
from pipeline.evaluation.predict import STAGE, DetectShards, version_of
from pipeline.evaluation.predictions import read_predictions, write_coco
from pipeline.evaluation.protocols import SetSpec
from pipeline.evaluation.report import class_aps, write_report
from pipeline.execution.inference import inference_workers
from pipeline.execution.options import DeviceOptions, WorkLeft
from pipeline.execution.run import run_workers
from pipeline.execution.worker import ShardJob
from pipeline.io.atomic import atomic_file, write_json
from pipeline.io.hashing import digest_file, digest_json, fingerprint
from pipeline.io.model_folder import model_revision
from pipeline.io.paths import is_url, join, local_folder
from pipeline.io.shard_patterns import expand_shards
from pipeline.stages.jobs import Evaluate

log = logging.getLogger("glip_self_train")
Metrics = dict[str, dict[str, float | None]]
KS = (1, 5, 10)
LVIS_ONLY = {"chunk_names", "chunk_detections", "class_detections"}
"""Settings that only the lvis protocol uses."""
METRICS = 5
"""Version of the metrics; 3: names without a training image are rare; settings by set; 4: AP by class,
metrics without ground truth are null; 5: the evidence names the set's shards.
"""


def run(job: Evaluate) -> Metrics:
    """Evaluate a model folder on sets of shards; a repeated run computes only what is missing.

    Writes ``predictions/SET--SHARD.parquet``, ``evidence/``, ``predictions-SET.json`` (COCO's
    results format), ``report.md`` with plots, and last ``metrics.json``.

    Returns:
        The metrics of each set's protocol, in percent; ``images`` and ``queries`` are counts.

    Raises:
        InputError: the model, a shard or a set cannot be used. RunError: a shard failed.
    """
    out, config = local_folder(job.out, "an evaluation"), job.settings
    revision = model_revision(job.model)
    if config.score_agg is None:  # by name in settings and fingerprints
        config = config.model_copy(update={"score_agg": own_score_agg(job.model)})
    shards = {name: [s for path in paths for s in expand_shards(path)] for name, paths in job.sets.items()}
    if unknown := sorted(set(job.frequencies) - set(shards)):
        names = "; ".join(f"{name}: no such set{did_you_mean(name, sorted(shards))}" for name in unknown)
        raise InputError(f"frequencies of {names}")
    frequencies = {name: read_frequencies(path) for name, path in job.frequencies.items()}
    sets = [EvaluationSet.open(name, paths, config) for name, paths in sorted(shards.items())]
    for name in sorted(set(config.protocols) - set(shards)):  # a recipe may name more sets than this run has
        log.warning("protocols.%s: no such set here%s", name, did_you_mean(name, sorted(shards)))
    for evaluation_set in sets:
        log.info("%s: measured by the protocol %s", evaluation_set.spec.name, evaluation_set.spec.protocol)
    plan = _Plan(config, job.model, revision, sets, frequencies)
    metrics_file = out / "metrics.json"
    if metrics_file.is_file():
        saved = json.loads(metrics_file.read_text())
        if saved.get("fingerprint") == plan.fingerprint_of():
            saved_metrics: Metrics = saved["sets"]
            return saved_metrics
    if job.check_only:
        raise WorkLeft
    _detect(plan, out / "predictions", job)
    metrics: Metrics = {}
    tables: dict[str, MatchTables] = {}
    for evaluation_set in sets:
        name = evaluation_set.spec.name
        metrics[name], tables[name] = _measure(plan, evaluation_set, out)
        log.info("%s: %s", name, ", ".join(f"{k} {v:.1f}" for k, v in metrics[name].items() if v is not None))
        if undefined := [k for k, v in metrics[name].items() if v is None]:
            log.warning("%s: has no ground truth; its %s are undefined and left out", name, ", ".join(undefined))
    aps = [metrics[s.spec.name]["ap"] for s in sets if s.spec.protocol == "odinw"]
    odinw = [ap for ap in aps if ap is not None]  # reported as the mean over sets
    document = {
        "fingerprint": plan.fingerprint_of(),
        "model": plan.revision,
        "sets": metrics,
        "classes": {name: class_aps(one) for name, one in tables.items() if one.names},
        "protocols": {s.spec.name: s.spec.protocol for s in sets},
        "settings": {s.spec.name: plan.settings(s.spec) for s in sets},
        "means": {"odinw": {"ap": float(np.mean(odinw)), "sets": len(odinw)}} if odinw else {},
    }
    write_report(out, document, tables)
    write_json(metrics_file, document)
    return metrics


@dataclass(frozen=True)
class _Plan:
    """A model, settings and sets, and their fingerprints."""

    config: EvaluateConfig
    model: str
    revision: str
    sets: Sequence[EvaluationSet]
    frequencies: Mapping[str, Frequencies]

    def fingerprint_of(self) -> str:
        """Return the fingerprint of the metrics."""
        inputs = {f"{s.spec.name}/{Path(path).name}": digest_file(path) for s in self.sets for path in s.shards}
        inputs |= {f"{s.spec.name}: names": s.spec.digest for s in self.sets}
        inputs |= {f"{name}: frequencies": table.digest for name, table in self.frequencies.items()}
        version = max(version_of(s.spec) for s in self.sets)
        config = self.config
        thresholds = {s.spec.name: s.spec.threshold(config) for s in self.sets}
        if len(values := {*thresholds.values()}) == 1:
            config = config.model_copy(update={"threshold": values.pop()})
        else:
            inputs["thresholds"] = digest_json(thresholds)
        return fingerprint(
            STAGE, version=version, config=config, inputs=inputs, model=self.revision, metrics=str(METRICS)
        )

    def settings(self, spec: SetSpec) -> dict[str, Any]:
        """Return the settings that a set's metrics depend on; others are not comparable."""
        lvis = spec.protocol == "lvis"
        others = {"max_detections"} if lvis else LVIS_ONLY
        used = self.config.model_dump(mode="json", exclude={"protocols", "batch_size", *others})
        used["threshold"] = spec.threshold(self.config)
        table = self.frequencies.get(spec.name) if lvis else None
        prompts = {"class_prompts": spec.digest[:12]} if spec.prompts else {}
        return used | prompts | ({"frequencies": table.digest[:12]} if table else {})

    def fingerprint_of_shard(self, spec: SetSpec, path: str) -> str:
        """Return the fingerprint of a shard's predictions, which not all settings affect."""
        unused = {"protocols", "class_detections"} | (set() if spec.protocol == "lvis" else LVIS_ONLY)
        return fingerprint(
            f"{STAGE}/predictions",
            version=version_of(spec),
            config=self.config.model_dump(mode="json", exclude=unused) | {"threshold": spec.threshold(self.config)},
            inputs={"shard": digest_file(path), "names": spec.digest},
            model=self.revision,
            protocol=spec.protocol,
        )


def _detect(plan: _Plan, out: Path, options: DeviceOptions) -> None:
    jobs, specs = list[ShardJob](), dict[str, SetSpec]()
    for evaluation_set in sorted(plan.sets, key=lambda s: s.spec.protocol == "lvis"):  # loads each kind's model once
        for name, path in zip(evaluation_set.job_names, evaluation_set.shards, strict=True):
            jobs.append(ShardJob(path, name))
            specs[name] = evaluation_set.spec
    workers = inference_workers(partial(DetectShards, plan.config, plan.model, specs, str(out)), options, len(jobs))
    report = run_workers(
        STAGE, jobs, out, workers, options,
        fingerprint_of=lambda job: plan.fingerprint_of_shard(specs[job.name], job.path),
    )  # fmt: skip
    for unit, tally in report.tallies.items():
        for reason, n in tally.dropped.items():
            log.warning("%d %s lost: %s; their ground truth counts as missed", n, unit, reason)


def _measure(plan: _Plan, evaluation_set: EvaluationSet, out: Path) -> tuple[dict[str, float | None], MatchTables]:
    spec, config = evaluation_set.spec, plan.config
    frequencies = plan.frequencies.get(spec.name, Frequencies())
    predictions = [
        read_predictions(join(out / "predictions", f"{name}.parquet"), count)
        for name, count in zip(evaluation_set.job_names, evaluation_set.records.counts, strict=True)
    ]
    results, keys, phrases = evaluation_set.results(predictions, frequencies)
    if spec.protocol == "lvis":
        results = best_of_each_class(results, config.class_detections)
        matches = match(results, federated=True)
    else:
        matches = match(results, config.max_detections)
    with atomic_file(out / f"predictions-{spec.name}.json") as file:
        write_coco(file, results, keys)
    queries = queries_of(results, absent=spec.protocol == "cgf1")
    texts = query_phrases(queries, spec.names, phrases)
    counts = frequencies.counts or Counter(map(normalise_name, texts))
    tables = MatchTables(
        protocol=spec.protocol,
        names=spec.names,
        gold=digest_json([digest_file(path) for path in evaluation_set.shards]),
        matches=matches,
        queries=queries,
        phrases=texts,
        groups=frequencies.groups_of(spec.names),
        counts={n: counts[n] for n in map(normalise_name, sorted({*spec.names, *texts})) if n in counts},
        counts_from="training images" if frequencies.counts else "images of this set",
        absent_pairs=absent_images(results, len(spec.names)),
        shards=tuple(s if is_url(s) else os.path.relpath(s, out) for s in evaluation_set.shards),
        presence_threshold=config.presence_threshold,
    )
    write_match_tables(out / "evidence", spec.name, tables)
    return {"images": len(results), **_metrics(spec, config, results, tables)}, tables


def _metrics(
    spec: SetSpec, config: EvaluateConfig, results: Sequence[ImageResult], tables: MatchTables
) -> dict[str, float | None]:
    queries = tables.queries

    def shares(name: str, first: np.ndarray) -> dict[str, float | None]:
        total = len(first)
        return {f"{name}_{k}": 100.0 * float((first < min(k, NEVER)).sum()) / total if total else None for k in KS}

    if spec.protocol == "cgf1":
        presence = PhrasePresence(tables, config.presence_threshold)
        values = presence.metrics(np.ones((1, tables.matches.images)))
        counts = {"presence_threshold": 100 * presence.threshold, "queries": len(queries.image)}
        return {**{name: float(value[0]) for name, value in values.items()}, **counts}
    if spec.protocol == "lvis":
        return fixed_ap(tables.matches, [normalise_name(n) for n in spec.names], tables.groups)
    if spec.protocol in {"coco", "odinw"}:
        return coco_ap(results, spec.names, config.max_detections)
    if spec.protocol == "refcoco":
        return shares("precision_at", queries.first) | {"queries": len(queries.image)}
    recall = shares("recall_at", queries.first) | {"queries": len(queries.image)}
    if spec.protocol == "flickr":
        return recall | shares("merged_recall_at", queries.first_merged)
    return recall | coco_ap(results, spec.names, config.max_detections)
