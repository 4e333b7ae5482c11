"""Settings of ingest, and locations of a run's data."""

from __future__ import annotations

from operator import not_
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.config.base import Config, UnitFloat
from pipeline.config.secrets import Address, refuse_secrets


class IngestConfig(Config):
    """Conversion of human-labelled sets to training shards."""

    samples_per_shard: int = Field(500, ge=1, description="records per output shard")
    max_failed_share: UnitFloat = Field(
        0.05, description="fail if more than this share of the images is lost, or of the regions is invalid"
    )
    check_images: Literal["header", "decode"] = Field(
        "header",
        description="header: only the image's header is read, and its bytes are copied; decode: each image is also "
        "decoded, so that damage is found here and not in training; several times slower",
    )


class DataConfig(Config):
    """Locations of a run's data. If all are absent, the demo's data is generated."""

    manifest: Address | None = Field(None, description="manifest of the human-labelled sets (see data_manifests/)")
    root: Address | None = Field(None, description="folder that the manifest's paths are relative to")
    sources: tuple[str, ...] = Field(
        (), description="sets of the manifest to train on; each is a source of the mixture"
    )
    crawl: tuple[Address, ...] = Field(
        (),
        description="crawl shards: folders, globs or brace patterns; or images without shards; no secrets in URLs",
    )
    images: tuple[Address, ...] = Field(
        (),
        exclude_if=not_,  # so that settings of runs without it stay as they were
        description="images to label with data.names or data.captions, in place of data.crawl; without secrets",
    )
    names: str | None = Field(
        None,
        exclude_if=lambda names: names is None,
        description="class names to label in place of captions' phrases, as pseudo-label --names has them; the student "
        "then learns from detection records",
    )
    captions: Address | None = Field(
        None,
        exclude_if=lambda path: path is None,
        description="file of captions to use in place of the crawl's own, as parse-phrases --captions has it",
    )
    caption_key: str | None = Field(
        None, exclude_if=lambda name: name is None, description="column of the keys in data.captions"
    )
    caption_column: str | None = Field(
        None, exclude_if=lambda name: name is None, description="column of the captions in data.captions"
    )
    gold: Address | None = Field(
        None, description="gold boxes of the crawl, for measuring label quality (the demo has them)"
    )
    base: str | None = Field(None, description="evaluation set of classes the teacher was trained on")
    novel: str | None = Field(None, description="evaluation set of classes the teacher was not trained on")
    evaluation: tuple[str, ...] = Field((), description="further evaluation sets of the manifest, such as ODinW's")
    validation: str | None = Field(
        None,
        exclude_if=lambda name: name is None,  # so that settings of runs without it stay as they were
        description="set of the manifest that trainings are validated on (teacher.validate_every); no evaluation set, "
        "or the best model is chosen by what it is measured on",
    )
    frequencies: dict[str, Address] = Field(
        default_factory=dict,
        description="evaluation set -> file with the frequency of its class names in training data "
        "(evaluate --frequencies); required for LVIS' APr",
    )

    @field_validator("sources", "crawl", "images", "evaluation", mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("manifest", "root", "crawl", "images", "names", "captions", "gold", "frequencies", mode="before")
    @classmethod
    def _no_secrets(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_secrets(f"data.{info.field_name}", value)
        return value

    def labelled(self) -> tuple[str, ...]:
        """List the shards that the teacher labels: the images, or the crawl."""
        return self.images or self.crawl

    def used(self) -> tuple[str, ...]:
        """All sets of the manifest that a run reads: sources, evaluation sets and the validation set."""
        validation = () if self.validation is None else (self.validation,)
        return tuple(dict.fromkeys((*self.sources, *self.evaluated(), *validation)))

    def evaluated(self) -> tuple[str, ...]:
        """All evaluation sets: base, novel and the further ones."""
        return tuple(dict.fromkeys(name for name in (self.base, self.novel, *self.evaluation) if name is not None))
