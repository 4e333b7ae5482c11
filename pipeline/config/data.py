"""Settings of ingestion, and the locations of a run's data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.config.base import Config
from pipeline.config.secrets import Address, refuse_secrets


class IngestConfig(Config):
    """Human labels into training shards."""

    samples_per_shard: int = Field(500, ge=1, description="records in one output shard")
    max_failed_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="stop if more of the images than this are lost, or more of the regions are unreadable",
    )
    check_images: Literal["header", "decode"] = Field(
        "header",
        description="header: an image's size is read and its bytes are copied as they are; decode: each is also decoded "
        "once, so that one damaged further behind is lost here and not in training; several times slower",
    )


class DataConfig(Config):
    """Where the data of a run lies. All absent: the demo's own, generated."""

    manifest: Address | None = Field(None, description="YAML of the human-labelled sets (see data_manifests/)")
    root: Address | None = Field(None, description="folder that the manifest's paths are relative to")
    sources: tuple[str, ...] = Field(
        (), description="sets of the manifest to train on; each is a source of the mixture"
    )
    crawl: tuple[Address, ...] = Field(
        (), description="crawl shards: folders, globs or brace patterns; without secrets"
    )
    gold: Address | None = Field(
        None, description="gold boxes of the crawl, for measuring the labels (the demo has them)"
    )
    base: str | None = Field(None, description="evaluation set of names the teacher was taught")
    novel: str | None = Field(None, description="evaluation set of names it was not taught")
    evaluation: tuple[str, ...] = Field((), description="further evaluation sets of the manifest, such as ODinW's")
    frequencies: dict[str, Address] = Field(
        default_factory=dict,
        description="evaluation set -> file that says how often its names stand in training data (evaluate --frequencies); LVIS' APr needs it",
    )

    @field_validator("manifest", "root", "crawl", "gold", "frequencies", mode="before")
    @classmethod
    def _no_secrets(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_secrets(f"data.{info.field_name}", value)
        return value

    def evaluated(self) -> tuple[str, ...]:
        """All evaluation sets: base, novel, and the further ones."""
        named = (self.base, self.novel, *self.evaluation)
        return tuple(dict.fromkeys(name for name in named if name is not None))
