"""Settings of evaluation and of promotion."""

from __future__ import annotations

from operator import not_
from typing import Literal

from pydantic import Field

from pipeline.config.base import Config, ScoreAggregation, UnitFloat

EvaluationProtocol = Literal["detection", "coco", "lvis", "odinw", "flickr", "refcoco", "cgf1"]


class EvaluateConfig(Config):
    """Zero-shot evaluation of a model on sets with gold boxes."""

    protocols: dict[str, EvaluationProtocol] = Field(
        default_factory=dict,
        description="set name -> evaluation protocol; default: detection for sets with class names, flickr for sets "
        "with phrases of captions",
    )
    batch_size: int = Field(8, ge=1, description="images per forward pass; batches never leave their shard")
    threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="detections whose name or phrase has a lower probability (before centerness) are ignored; default: "
        "0.05 for coco, lvis, odinw and flickr, as GLIP's published figures have it; 0 for detection and refcoco",
    )
    score_agg: ScoreAggregation | None = Field(
        None, description="aggregation of a name's token scores; default: the model's own, mean if it states none"
    )
    max_detections: int = Field(
        100,
        ge=1,
        description="maximum detections per image or sentence (detection: per class and image, with at most 10 times "
        "the number of classes per image)",
    )
    chunk_names: int = Field(40, ge=1, description="lvis: class names per prompt")
    chunk_detections: int = Field(300, ge=1, description="lvis: maximum detections per image and prompt")
    class_detections: int = Field(10_000, ge=1, description="lvis: maximum detections per class over the whole set")
    image_size: int | None = Field(None, description="shorter side in pixels; default: the model's")
    max_image_size: int | None = Field(None, description="maximum longer side in pixels; default: the model's")
    presence_threshold: UnitFloat | None = Field(
        None,
        exclude_if=lambda threshold: threshold is None,  # so that fingerprints with the default stay as they were
        description="cgf1: score from which a phrase counts as present; default: the one with the highest MCC on "
        "half of the images, which is then left out",
    )
    precision: Literal["float32", "bf16"] = Field("float32", description="precision of the model's computation")


class PromotionConfig(Config):
    """Conditions for a student to become the next round's teacher, and for another round."""

    gates: tuple[str, ...] = Field(
        (),
        description="conditions on student minus teacher, in points, as SET.METRIC>=POINTS or SET.METRIC>POINTS with "
        "shell patterns, or on student minus control with control: before them; default: no ap, recall_at_1 or "
        "precision_at_1 down by more than 1, ap_rare not down, and no ap or recall_at_1 below the control's",
    )
    gain: str | None = Field(
        None,
        description="SET.METRIC that rounds should improve; default: of data.novel, else of data.base, the first "
        "metric among recall_at_1, precision_at_1, ap",
    )
    least_gain: float = Field(0.0, description="minimum gain in points for another round")
    least_label_precision: UnitFloat = Field(
        0.0,
        exclude_if=not_,  # so that settings of runs without it stay as they were
        description="stop before the crawl is labelled if, by its evaluation, a smaller share of the teacher's labels "
        "would be right; below 0.6 the run warns in any case",
    )
    samples: int = Field(
        1000, ge=1, description="bootstrap resamples of the images, for confidence intervals of the differences"
    )
