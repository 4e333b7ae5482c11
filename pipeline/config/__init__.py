"""Settings of every stage: immutable and typed. Imports neither torch nor spaCy.

A field's description is its help in Prefect's run form. Settings determine an output and are part
of its fingerprint; paths, devices and worker counts do not, and are arguments of the stages.
"""

from __future__ import annotations

from pipeline.config.base import Config
from pipeline.config.data import DataConfig, IngestConfig
from pipeline.config.evaluation import EvaluateConfig, EvaluationProtocol, PromotionConfig
from pipeline.config.labelling import (
    BuildShardsConfig,
    FilterConfig,
    MergeConfig,
    ParsePhrasesConfig,
    PseudoLabelConfig,
    RescoreConfig,
    VerifierConfig,
)
from pipeline.config.resources import ResourcesConfig
from pipeline.config.run import SelfTrainConfig
from pipeline.config.training import ModelConfig, NoisyLabelConfig, PromptConfig, TeacherConfig, TrainConfig

__all__ = [
    "BuildShardsConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "EvaluationProtocol",
    "FilterConfig",
    "IngestConfig",
    "MergeConfig",
    "ModelConfig",
    "NoisyLabelConfig",
    "ParsePhrasesConfig",
    "PromotionConfig",
    "PromptConfig",
    "PseudoLabelConfig",
    "RescoreConfig",
    "ResourcesConfig",
    "SelfTrainConfig",
    "TeacherConfig",
    "TrainConfig",
    "VerifierConfig",
]
