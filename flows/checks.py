"""What a recipe must hold for a run, asked before anything runs."""

from __future__ import annotations

from pipeline.config import SelfTrainConfig
from pipeline.demo.manifest import MANIFEST
from pipeline.errors import InputError, did_you_mean
from pipeline.evaluation.promote import parse_gates
from pipeline.io.manifests import read_manifest


def check_inputs(config: SelfTrainConfig) -> None:
    """Raises InputError before anything runs if the recipe lacks what its stages will ask for, or has a gate that cannot be read."""
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
    parse_gates(config.promotion.gates)
    if others := sorted(set(data.frequencies) - set(data.evaluated())):
        raise InputError(
            f"data.frequencies: {', '.join(others)} is no evaluation set; there are {list(data.evaluated())}"
        )
    if config.demo is None:
        for name in ("manifest", "crawl"):
            if not getattr(data, name):
                raise InputError(f"data.{name}: a run on real data needs it (only the demo makes its own)")


def check_sets(config: SelfTrainConfig) -> None:
    """Raises InputError if the manifest has not all the sets that the recipe trains and evaluates on: some are read hours after the start."""
    manifest = MANIFEST if config.demo is not None else str(config.data.manifest)
    sets = [name for name, entry in read_manifest(manifest).items() if entry.labelled]
    for field, names in (("data.sources", config.data.sources), ("evaluation sets of data", config.data.evaluated())):
        for name in names:
            if name not in sets:
                raise InputError(f"{field}: {manifest} has no labelled set {name!r}{did_you_mean(name, sets)}")
