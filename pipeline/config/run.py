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
    MergeConfig,
    ParsePhrasesConfig,
    PseudoLabelConfig,
    RescoreConfig,
)
from pipeline.config.resources import ResourcesConfig
from pipeline.config.training import ModelConfig, TeacherConfig, TrainConfig


class SelfTrainConfig(Config):
    """Settings of teacher, labels, student and control."""

    seed: int = Field(0, description="seed of data order, initial weights and the demo's scenes")
    rounds: int = Field(
        1,
        ge=1,
        description="maximum rounds of teacher -> labels -> student; a promoted student is the next round's teacher",
    )
    student_init: Literal["teacher", "scratch"] = Field("teacher", description="initial weights of the student")
    control: bool = Field(
        True,
        description="also train a control: the teacher, for the student's number of steps, on human labels only; a run "
        "without data.sources has none",
    )
    model: ModelConfig = ModelConfig()
    ingest: IngestConfig = IngestConfig()
    parse_phrases: ParsePhrasesConfig = ParsePhrasesConfig()
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    rescore: RescoreConfig = Field(RescoreConfig(), description="used only by the rescore command, not by self-train")
    merge_regions: MergeConfig = Field(
        MergeConfig(), description="used only by the merge-regions command, not by self-train"
    )
    filter_boxes: FilterConfig = FilterConfig()
    build_shards: BuildShardsConfig = BuildShardsConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promotion: PromotionConfig = PromotionConfig()
    data: DataConfig = DataConfig()
    resources: ResourcesConfig = ResourcesConfig()
    demo: dict[str, Any] | None = Field(None, description="settings of the demo data generator; absent for real data")

    @property
    def trains_control(self) -> bool:
        """Whether there is a control, which learns from human labels only."""
        return self.control and bool(self.data.sources)
