"""Settings and summary of the demo data. Does not import torch."""

from __future__ import annotations

from operator import not_
from typing import Literal

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.config.base import UnitFloat
from pipeline.io.strict_model import StrictModel


class DemoDataConfig(Config):
    """Settings of the demo data. The same settings and manifest always give the same bytes.

    Sizes in pixels are for ``image_size`` 96 and scale with it. A scene depends only on the seed,
    the set's name and its number, so changing the size of one set does not change the others.
    """

    seed: int = Field(0, ge=0, description="seed of all random choices")
    image_size: int = Field(96, ge=64, description="shorter side of a scene in pixels")
    max_aspect: float = Field(1.0, ge=1, le=2, description="maximum ratio of longer to shorter side; 1: square")
    detection_scenes: int = Field(1500, ge=0, description="scenes labelled by class name, BASE nouns")
    grounding_scenes: int = Field(1000, ge=0, description="scenes labelled by caption spans, BASE nouns")
    attributes_scenes: int = Field(
        500, ge=0, description='scenes labelled by caption spans, colours without nouns ("a red thing")'
    )
    crawled_scenes: int = Field(4000, ge=0, description="scenes with captions only, BASE and NOVEL nouns")
    validation_scenes: int = Field(100, ge=0, description="scenes in each of val_base and val_novel")
    evaluation_scenes: int = Field(300, ge=0, description="scenes in each of eval_base and eval_novel")
    absent_scenes: int = Field(
        0,
        ge=0,
        exclude_if=not_,  # so that data of earlier versions stay as they are
        description="scenes of eval_absent: BASE and NOVEL nouns by colour, with phrases that are absent",
    )
    shard_size: int = Field(250, ge=1, le=10000, description="crawled samples per tar")
    photos: bool = Field(True, description="also write real photographs as a crawled shard")
    max_photo_side: int = Field(384, ge=32, description="maximum longer side of photographs in pixels")
    jpeg_quality: int = Field(90, ge=1, le=95)
    small: tuple[int, int] = Field((20, 28), description='range of the longer side of a "small" thing in pixels')
    large: tuple[int, int] = Field((34, 44), description='range of the longer side of a "large" thing in pixels')
    max_rotation: int = Field(12, ge=0, le=45, description="maximum rotation in degrees, in either direction")
    max_overlap: float = Field(
        0.05, ge=0, le=0.5, description="maximum overlap of two things, as a share of the smaller box's area"
    )
    same_noun_share: UnitFloat = Field(0.8, description="share of grounding scenes with two things of one noun")
    colour_share: UnitFloat = Field(0.92, description="share of phrases that name the colour")
    size_share: UnitFloat = Field(0.4, description="share of phrases that name the size")
    repeat_colour_share: UnitFloat = Field(0.2, description="share of crawled scenes in which colours may repeat")
    unmentioned_share: UnitFloat = Field(
        0.15, description="share of captions of scenes with 3 or 4 things that do not mention one of them"
    )
    useless_share: UnitFloat = Field(0.03, description="share of crawled captions without a description")
    broken_share: UnitFloat = Field(0.01, description="share of crawled images that are not a whole JPEG")
    train_fonts: tuple[str, ...] = Field((), description="fonts of labelled and crawled scenes; (): the manifest's")
    validation_fonts: tuple[str, ...] = Field((), description="fonts of val_*; (): the manifest's")
    evaluation_fonts: tuple[str, ...] = Field((), description="fonts of eval_*; (): the manifest's")

    @model_validator(mode="after")
    def _sizes_and_shares_fit(self) -> DemoDataConfig:
        if not 8 <= self.small[0] <= self.small[1] < self.large[0] <= self.large[1] <= 46:
            raise ValueError(f"small {self.small}, large {self.large}: want 8 <= small < large <= 46, as four must fit")
        if self.useless_share + self.broken_share > 1:
            raise ValueError("useless_share and broken_share: together at most 1")
        return self


class SetSummary(StrictModel):
    """Counts of one set of the demo data, and the digest of its files."""

    name: str
    kind: Literal["detection", "grounding", "crawl", "gold", "evaluation"]
    format: Literal["coco", "mdetr", "img2dataset", "parquet"]
    path: str = Field(description="relative to the generated folder; for a crawl the folder of its shards")
    nouns: Literal["base", "novel", "base and novel", "photographs"]
    images: int = 0
    objects: int = Field(0, description="drawn things; for gold, phrases with a box")
    shards: int = 0
    broken: int = Field(0, description="images that are not a whole JPEG")
    useless: int = Field(0, description="captions without a description")
    sha256: str = Field(description="SHA-256 of the sorted lines 'sha256 name' of its files")


class DemoDataSummary(StrictModel):
    """Content of a generated folder: its ``summary.json``, written last."""

    fingerprint: str
    config: DemoDataConfig
    base_nouns: tuple[str, ...]
    novel_nouns: tuple[str, ...]
    fonts: dict[str, tuple[str, ...]] = Field(description="split -> font families")
    sets: dict[str, SetSummary]

    def lines(self) -> list[str]:
        """Lines for a terminal, one per set."""
        return [
            f"{s.name}: {s.images:,} images, {s.objects:,} objects ({s.nouns}; {s.format}) in {s.path}"
            + (f"; {s.broken} broken images, {s.useless} useless captions" if s.broken or s.useless else "")
            for s in self.sets.values()
        ]
