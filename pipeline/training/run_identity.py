"""Fingerprints of a training's settings and data, and how two trainings differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.config import ModelConfig, TrainConfig
from pipeline.data.class_names import digests
from pipeline.io.hashing import digest_file, digest_json
from pipeline.io.model_folder import model_revision

VERSION = 5
"""3: only settings that change weights; 4: boxes end at their last pixel; 5: class names, order."""
PACKING = 2
"""Version of the packing of captions, a setting of trainings that pack any. 2: one that does not fit
is skipped, and the rest are tried; the caption itself is no negative.
"""
NORMALISATION = "step"
"""Divisor of losses under accumulation: the counts of a step. Earlier versions: of each micro-batch."""
RUNTIME_SETTINGS = {
    "log_every",
    "save_every",
    "draw_every",
    "keep_checkpoints",
    "max_skipped_steps",
    "gradient_checkpointing",
    "check_memory",
    "validate_every",
    "validate_images",
    "best_metric",
}
"""Settings that do not change any finite step; a run may be resumed with others."""
MEMORY_SETTINGS = {"accumulate", "compile"}
"""Settings that keep samples and order but not rounding and dropout; resuming logs a change."""


class Identity(BaseModel):
    """Settings, data and initial model of one training.

    ``fits``: MEMORY_SETTINGS. ``init``: revision of the initial model. ``sources``: digest of each
    source's shard names and contents in reading order. ``class_names``: digests by data set.
    """

    model_config = ConfigDict(extra="forbid")

    version: int
    settings: dict[str, Any]
    fits: dict[str, Any]
    model: dict[str, Any] | None
    init: str | None
    sources: dict[str, str]
    class_names: dict[str, str] = {}  # before version 5 there were none

    @classmethod
    def of(
        cls, config: TrainConfig, sources: Mapping[str, Sequence[str]], *, model: ModelConfig, init: str | None
    ) -> Identity:
        """The identity of a training with these settings, shards by source and initial model.

        Raises:
            InputError: a shard or the model folder does not exist, or a detection set has no class
                names.
        """
        settings = config.model_dump(mode="json")
        if config.noisy.caption_negatives:
            settings["noisy"]["packing"] = PACKING
        return cls(
            version=VERSION,
            settings={k: v for k, v in settings.items() if k not in RUNTIME_SETTINGS | MEMORY_SETTINGS},
            fits={"accumulate": config.accumulate}
            | ({"compile": config.compile} if config.compile != "off" else {})
            | ({"normalised_by": NORMALISATION} if config.accumulate > 1 else {}),
            model=None if init else model.model_dump(mode="json"),
            init=model_revision(init) if init else None,
            # a list: the order of records depends on that of their shards, and shards of two folders may share a name
            sources={n: digest_json([[Path(s).name, digest_file(s)] for s in shards]) for n, shards in sources.items()},
            class_names=digests(sources),
        )

    @property
    def fingerprint(self) -> str:
        """Digest stored in checkpoints; equal for runs that may be resumed from one another."""
        return digest_json({"stage": "train", **self.model_dump(mode="json", exclude={"fits"})})

    @property
    def result_fingerprint(self) -> str:
        """Digest stored in the report and model of a finished training."""
        return digest_json({"stage": "train", **self.model_dump(mode="json")})

    def changed_settings(self, before: Identity) -> list[str]:
        """Settings that differ from ``before``, as in "steps 500 (before: 1000)"."""
        if before.version != self.version:
            return [f"format {self.version} (before: {before.version})"]
        changed = list(_differences(before.settings, self.settings))
        if (before.init is None) != (self.init is None):
            names = {True: "no initial model", False: "an initial model"}
            return [*changed, f"{names[self.init is None]} (before: {names[before.init is None]})"]
        return [*changed, *_differences(before.model or {}, self.model or {}, "model.")]

    def changed_memory_settings(self, before: Identity) -> list[str]:
        """MEMORY_SETTINGS that differ from ``before``, in the same form."""
        return list(_differences(before.fits, self.fits))

    def changed_data(self, before: Identity) -> list[str]:
        """Inputs that differ from ``before``, as in "source pseudo", "the initial model"."""
        changed = _changed("source", before.sources, self.sources)
        changed += _changed("class names of", before.class_names, self.class_names)
        both = self.init is not None and before.init is not None
        return changed + ["the initial model"] * (both and self.init != before.init)


def _changed(kind: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [f"{kind} {n}" for n in sorted(before.keys() | now.keys()) if before.get(n) != now.get(n)]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} {json.dumps(new)} (before: {json.dumps(old)})"
