"""Settings of a whole self-training run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.config.base import Config
from pipeline.config.data import DataConfig, IngestConfig
from pipeline.config.evaluation import EvaluateConfig, PromotionConfig
from pipeline.config.labelling import (
    BuildShardsConfig,
    FilterConfig,
    ParsePhrasesConfig,
    PseudoLabelConfig,
    RescoreConfig,
)
from pipeline.config.resources import ResourcesConfig
from pipeline.config.training import ModelConfig, TrainConfig


class SelfTrainConfig(Config):
    """The whole recipe: teacher, labels, student, and the control it is measured against."""

    seed: int = Field(0, description="seed of data order, initial weights and the demo's scenes")
    rounds: int = Field(
        1,
        ge=1,
        description="teacher -> labels -> student, so many times at most; a promoted student teaches the next round",
    )
    student_init: Literal["teacher", "scratch"] = Field("teacher", description="where the student starts from")
    control: bool = Field(True, description="also train the teacher on as many steps of human labels alone")
    model: ModelConfig = ModelConfig()
    ingest: IngestConfig = IngestConfig()
    parse_phrases: ParsePhrasesConfig = ParsePhrasesConfig()
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    rescore: RescoreConfig = Field(RescoreConfig(), description="of the rescore command; self-train does not run it")
    filter_boxes: FilterConfig = FilterConfig()
    build_shards: BuildShardsConfig = BuildShardsConfig()
    teacher: TrainConfig = TrainConfig()
    student: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promotion: PromotionConfig = PromotionConfig()
    data: DataConfig = DataConfig()
    resources: ResourcesConfig = ResourcesConfig()
    demo: dict[str, Any] | None = Field(None, description="settings of the demo's data generator; absent for real data")
