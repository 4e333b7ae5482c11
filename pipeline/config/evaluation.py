"""Settings of evaluation, and of promoting a student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.base import Config

EvaluationProtocol = Literal["detection", "coco", "lvis", "odinw", "flickr", "refcoco"]


class EvaluateConfig(Config):
    """Zero-shot evaluation of a model on sets with gold boxes."""

    protocols: dict[str, EvaluationProtocol] = Field(
        default_factory=dict,
        description="how a set is measured, by the set's name; others: detection where labels are class names, flickr "
        "where they are phrases of captions",
    )
    batch_size: int = Field(8, ge=1, description="images per forward pass; batches never leave their shard")
    threshold: float = Field(0.0, ge=0, lt=1, description="detections below this score are not considered")
    score_agg: Literal["mean", "max", "geometric", "sum"] = Field("mean", description="a name's score from its tokens'")
    max_detections: int = Field(
        100,
        ge=1,
        description="of an image or sentence at most (detection: of a class, and ten a class of an image together)",
    )
    chunk_names: int = Field(40, ge=1, description="lvis: names in one prompt")
    chunk_detections: int = Field(300, ge=1, description="lvis: detections of one image and prompt at most")
    class_detections: int = Field(10_000, ge=1, description="lvis: best detections of a class over the whole set")
    image_size: int | None = Field(None, description="shorter side in pixels; default: the model's own")
    max_image_size: int | None = Field(None, description="longer side at most; default: the model's own")
    precision: Literal["float32", "bf16"] = Field("float32", description="arithmetic of the model")


class PromotionConfig(Config):
    """Which student teaches the next round, and when rounds stop."""

    gates: tuple[str, ...] = Field(
        (),
        description="what must hold of student minus teacher, in points, as SET.METRIC>=POINTS or SET.METRIC>POINTS with shell "
        "patterns; default: no ap, recall_at_1 or precision_at_1 down by more than 1, ap_rare not down",
    )
    gain: str | None = Field(
        None,
        description="SET.METRIC that rounds shall raise; default: the first metric of data.novel, else of data.base, among "
        "recall_at_1, precision_at_1, ap",
    )
    least_gain: float = Field(
        0.0, description="points of it below which no further round is worth its cost: the student is the last"
    )
    samples: int = Field(1000, ge=1, description="resamples of the images, for the intervals of the differences")
