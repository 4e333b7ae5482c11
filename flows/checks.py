"""What a recipe must hold for a run, asked before anything runs."""

from __future__ import annotations

from pipeline.config import SelfTrainConfig
from pipeline.errors import InputError
from pipeline.evaluation.promote import parse_gates


def check_inputs(config: SelfTrainConfig) -> None:
    """Raises InputError before anything runs if the recipe lacks what its stages will ask for, or has a gate that cannot be read."""
    data = config.data
    if not data.sources:
        raise InputError("data.sources: name the sets of the manifest to train on, such as [detection, grounding]")
    for name, mixture in (("teacher", config.teacher.mixture), ("student", config.student.mixture)):
        if set(mixture) - {"pseudo"} != set(data.sources):
            raise InputError(f"{name}.mixture names {sorted(mixture)}, but data.sources are {list(data.sources)}")
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
