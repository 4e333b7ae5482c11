"""What a training is a function of: by it a run knows its checkpoints, and says how another's differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.config import ModelConfig, TrainConfig
from pipeline.io.hashing import digest_file, digest_json, model_revision

VERSION = 4  # 3: settings that change no weight are not part of it; 4: targets name the last pixel of a box
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
    """Settings, data and beginning of one training. ``init`` is the revision of the model it starts from, ``sources`` digests."""

    model_config = ConfigDict(extra="forbid")

    version: int
    settings: dict[str, Any]
    fits: dict[str, Any]
    model: dict[str, Any] | None
    init: str | None
    sources: dict[str, str]

    @classmethod
    def of(
        cls, config: TrainConfig, sources: Mapping[str, Sequence[str]], *, model: ModelConfig, init: str | None
    ) -> Identity:
        """The identity of a training with these settings, shards by source and beginning.

        Raises:
            InputError: a shard or the model folder is not there.
        """
        settings = config.model_dump(mode="json")
        return cls(
            version=VERSION,
            settings={k: v for k, v in settings.items() if k not in HOW_IT_RUNS | HOW_IT_FITS},
            fits={k: settings[k] for k in sorted(HOW_IT_FITS)},
            model=None if init else model.model_dump(mode="json"),
            init=model_revision(init) if init else None,
            sources={n: digest_json({Path(s).name: digest_file(s) for s in shards}) for n, shards in sources.items()},
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
        """Which inputs have changed since ``before``: "source pseudo", "the initial model"."""
        names = sorted(self.sources.keys() | before.sources.keys())
        found = [f"source {n}" for n in names if self.sources.get(n) != before.sources.get(n)]
        both = self.init is not None and before.init is not None
        return found + ["the initial model"] * (both and self.init != before.init)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} {json.dumps(new)} (before: {json.dumps(old)})"
