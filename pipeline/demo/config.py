"""Settings of the demo's data, and what the generator says it made. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config import Config


class DemoDataConfig(Config):
    """What to generate. The same settings and the same manifest always give the same bytes.

    Pixels refer to a scene whose shorter side is 96; sizes of things scale with ``image_size``. A set's
    scenes depend on the seed, the set's name and the scene's number alone, so changing one count leaves the
    other sets as they were.
    """

    seed: int = Field(0, ge=0, description="every random choice starts here")
    image_size: int = Field(96, ge=64, description="shorter side of a scene in pixels")
    max_aspect: float = Field(1.0, ge=1, le=2, description="longer side over shorter at most; 1: square")
    detection_scenes: int = Field(1500, ge=0, description="labelled by class name, BASE nouns")
    grounding_scenes: int = Field(1000, ge=0, description="labelled by caption spans, BASE nouns")
    attributes_scenes: int = Field(
        500, ge=0, description='labelled by caption spans, colours without nouns ("a red thing")'
    )
    crawled_scenes: int = Field(4000, ge=0, description="captions only, BASE and NOVEL nouns")
    validation_scenes: int = Field(100, ge=0, description="in each of val_base and val_novel")
    evaluation_scenes: int = Field(300, ge=0, description="in each of eval_base and eval_novel")
    shard_size: int = Field(250, ge=1, le=10000, description="crawled samples in one tar")
    photos: bool = Field(True, description="also pack real photographs as a crawled shard")
    max_photo_side: int = Field(384, ge=32, description="longer side of photographs at most, in pixels")
    jpeg_quality: int = Field(90, ge=1, le=95)
    small: tuple[int, int] = Field((20, 28), description='longer side of a "small" thing, in pixels')
    large: tuple[int, int] = Field((34, 44), description='longer side of a "large" thing, in pixels')
    max_rotation: int = Field(12, ge=0, le=45, description="degrees either way")
    max_overlap: float = Field(0.05, ge=0, le=0.5, description="between two things, of the smaller box's area")
    same_noun_share: float = Field(0.8, ge=0, le=1, description="grounding scenes with two of one noun")
    colour_share: float = Field(0.92, ge=0, le=1, description="phrases that name the colour")
    size_share: float = Field(0.4, ge=0, le=1, description="phrases that name the size")
    repeat_colour_share: float = Field(0.2, ge=0, le=1, description="crawled scenes whose colours may repeat")
    unmentioned_share: float = Field(0.15, ge=0, le=1, description="captions of 3 or 4 that leave one out")
    useless_share: float = Field(0.03, ge=0, le=1, description="crawled captions that describe nothing; rounded")
    broken_share: float = Field(0.01, ge=0, le=1, description="crawled images that are no whole JPEG; rounded")
    train_fonts: tuple[str, ...] = Field((), description="of labelled and crawled scenes; empty: manifest's")
    validation_fonts: tuple[str, ...] = Field((), description="of val_*; empty: the manifest's")
    evaluation_fonts: tuple[str, ...] = Field((), description="of eval_*; empty: the manifest's")

    @model_validator(mode="after")
    def _sizes_and_shares_fit(self) -> DemoDataConfig:
        if not 8 <= self.small[0] <= self.small[1] < self.large[0] <= self.large[1] <= 46:
            raise ValueError(f"small {self.small}, large {self.large}: want 8 <= small < large <= 46, as four must fit")
        if self.useless_share + self.broken_share > 1:
            raise ValueError("useless_share and broken_share: together at most 1")
        return self


class SetSummary(BaseModel):
    """Counts of one set of the demo's data, and the digest of its files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["detection", "grounding", "crawl", "gold", "evaluation"]
    format: Literal["coco", "mdetr", "img2dataset", "parquet"]
    path: str = Field(description="below the generated folder; of a crawl, the folder of its shards")
    nouns: Literal["base", "novel", "base and novel", "photographs"]
    images: int = 0
    objects: int = Field(0, description="drawn things; of gold, phrases with a box")
    shards: int = 0
    broken: int = Field(0, description="members that are no whole JPEG")
    useless: int = Field(0, description="captions that describe nothing")
    sha256: str = Field(description="of the sorted lines 'sha256 name' of its files")


class DemoDataSummary(BaseModel):
    """What lies in a generated folder; ``summary.json`` in it, written last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    config: DemoDataConfig
    base_nouns: tuple[str, ...]
    novel_nouns: tuple[str, ...]
    fonts: dict[str, tuple[str, ...]] = Field(description="split -> font families")
    sets: dict[str, SetSummary]

    def lines(self) -> list[str]:
        """One line a set, for a terminal."""
        return [
            f"{s.name}: {s.images:,} images, {s.objects:,} objects ({s.nouns}; {s.format}) in {s.path}"
            + (f"; {s.broken} broken images, {s.useless} useless captions" if s.broken or s.useless else "")
            for s in self.sets.values()
        ]
