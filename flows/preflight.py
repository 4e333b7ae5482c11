"""Checks of a recipe, its files and the machine before a run starts."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from flows.gpu_leases import check_count, gpus_here
from flows.task_runners import check_cluster
from pipeline.config import ResourcesConfig, SelfTrainConfig
from pipeline.data.manifests import read_manifest
from pipeline.demo.manifest import MANIFEST
from pipeline.errors import InputError, did_you_mean
from pipeline.evaluation.compare import MEAN_SET
from pipeline.evaluation.promotion import parse_gates
from pipeline.filtering.gold import gold_tables
from pipeline.filtering.rules import extra_rules
from pipeline.io.paths import is_url
from pipeline.io.shard_patterns import expand_shards


def check_inputs(config: SelfTrainConfig) -> None:
    """Raise InputError if the recipe lacks what its stages need, or a gate cannot be parsed."""
    data = config.data
    if not data.sources:
        raise InputError("data.sources: name the sets of the manifest to train on, such as [detection, grounding]")
    if "pseudo" in config.teacher.mixture:
        raise InputError(
            "teacher.mixture: `pseudo` are the labels that the teacher makes; only the student learns from them"
        )
    for name, training in (("teacher", config.teacher), ("student", config.student)):
        if set(training.mixture) - {"pseudo"} != set(data.sources):
            raise InputError(
                f"{name}.mixture names {sorted(training.mixture)}, but data.sources are {list(data.sources)}"
            )
        if training.first_steps and not set(training.mixture) >= set(training.first_mixture) > set():
            raise InputError(
                f"{name}.first_mixture {training.first_mixture}: want shares of some of {sorted(training.mixture)}"
            )
    if "pseudo" not in config.student.mixture:
        raise InputError(f"student.mixture {config.student.mixture}: give `pseudo` a share")
    extra_rules(config.filter_boxes)
    evaluated = list(data.evaluated())
    sets = [*evaluated, MEAN_SET]
    for gate in parse_gates(config.promotion.gates):
        if evaluated and not any(fnmatchcase(name, gate.set_pattern) for name in sets):
            hint = did_you_mean(gate.set_pattern, sets)
            raise InputError(f"promotion.gates: {gate.text!r} fits no evaluation set{hint}; there are {sets}")
    gain = config.promotion.gain
    if gain is not None and evaluated and (name := gain.rpartition(".")[0]) not in evaluated:
        raise InputError(
            f"promotion.gain: {gain!r} is of no evaluation set{did_you_mean(name, evaluated)}; "
            f"want SET.METRIC of {evaluated}"
        )
    if others := sorted(set(data.frequencies) - set(evaluated)):
        raise InputError(f"data.frequencies: {', '.join(others)} is no evaluation set; there are {evaluated}")
    if config.demo is None:
        for name in ("manifest", "crawl"):
            if not getattr(data, name):
                raise InputError(f"data.{name}: a run on real data needs it (only the demo makes its own)")


def check_files(config: SelfTrainConfig) -> None:
    """Raise InputError if a local file of a recipe on real data is missing: some are opened days after the start."""
    if config.demo is not None:
        return
    data = config.data
    local = [pattern for pattern in data.crawl if not is_url(pattern)]
    if local:
        expand_shards(local)
    for name, path in data.frequencies.items():  # others are shards, which ingest may be about to make
        if path.endswith(".json") and not is_url(path) and not Path(path).is_file():
            raise InputError(f"data.frequencies: {name}: {path}: no such file")
    if data.gold is not None and not is_url(data.gold):
        gold_tables(data.gold)


def check_machine(resources: ResourcesConfig) -> None:
    """Raise InputError if a job needs more GPUs than there are, or the cluster cannot be used."""
    check_cluster(resources)
    if resources.device == "cuda" and resources.cluster is None and (here := gpus_here()):
        check_count(resources.gpus or 1, here)


def check_sets(config: SelfTrainConfig) -> None:
    """Raise InputError if the manifest lacks a set of the recipe: some are read hours after the start."""
    manifest = MANIFEST if config.demo is not None else str(config.data.manifest)
    sets = [name for name, entry in read_manifest(manifest).items() if entry.labelled]
    for field, names in (("data.sources", config.data.sources), ("evaluation sets of data", config.data.evaluated())):
        for name in names:
            if name not in sets:
                raise InputError(f"{field}: {manifest} has no labelled set {name!r}{did_you_mean(name, sets)}")
