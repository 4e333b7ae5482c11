"""What a training is a function of: by it a run knows its checkpoints, and says how another's differ."""

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
"""3: settings that change no weight are not part of it; 4: targets name the last pixel of a box; 5: shards in their order, class names."""
HOW_IT_RUNS = {
    "log_every",
    "save_every",
    "draw_every",
    "keep_checkpoints",
    "max_skipped_steps",
    "gradient_checkpointing",
}
"""Settings that change no step that went well; a run that was stopped may go on with others."""
HOW_IT_FITS = {"accumulate"}
"""Settings that keep the samples and their order but weigh a step's images otherwise: a run may go on with others, and says so."""


class Identity(BaseModel):
    """Settings, data and beginning of one training. ``init`` is the revision of the model it starts from, ``sources``: digests of each one's
    shards with their names, in the order in which they are read; ``class_names``: digests by data set."""

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
        """The identity of a training with these settings, shards by source and beginning.

        Raises:
            InputError: a shard or the model folder is not there, or a detection set has no class names.
        """
        settings = config.model_dump(mode="json")
        return cls(
            version=VERSION,
            settings={k: v for k, v in settings.items() if k not in HOW_IT_RUNS | HOW_IT_FITS},
            fits={k: settings[k] for k in sorted(HOW_IT_FITS)},
            model=None if init else model.model_dump(mode="json"),
            init=model_revision(init) if init else None,
            # a list: the order of records depends on the places of their shards, and two folders may hold shards of one name
            sources={n: digest_json([[Path(s).name, digest_file(s)] for s in shards]) for n, shards in sources.items()},
            class_names=digests(sources),
        )

    @property
    def mark(self) -> str:
        """The digest that the checkpoints carry: the same for all that may go on from one another."""
        return digest_json({"stage": "train", **self.model_dump(mode="json", exclude={"fits"})})

    @property
    def result(self) -> str:
        """The digest that a finished training carries."""
        return digest_json({"stage": "train", **self.model_dump(mode="json")})

    def other_settings(self, before: Identity) -> list[str]:
        """What a person has set otherwise than ``before``: "steps 500 (before: 1000)"."""
        if before.version != self.version:
            return [f"format {self.version} (before: {before.version})"]
        found = list(_differences(before.settings, self.settings))
        if (before.init is None) != (self.init is None):
            names = {True: "no initial model", False: "an initial model"}
            return [*found, f"{names[self.init is None]} (before: {names[before.init is None]})"]
        return [*found, *_differences(before.model or {}, self.model or {}, "model.")]

    def other_fits(self, before: Identity) -> list[str]:
        """The same of what may change from one start to the next and is worth telling."""
        return list(_differences(before.fits, self.fits))

    def other_data(self, before: Identity) -> list[str]:
        """Which inputs have changed since ``before``: "source pseudo", "class names of objects365", "the initial model"."""
        found = _others("source", before.sources, self.sources)
        found += _others("class names of", before.class_names, self.class_names)
        both = self.init is not None and before.init is not None
        return found + ["the initial model"] * (both and self.init != before.init)


def _others(kind: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [f"{kind} {n}" for n in sorted(before.keys() | now.keys()) if before.get(n) != now.get(n)]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} {json.dumps(new)} (before: {json.dumps(old)})"
