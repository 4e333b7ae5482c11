"""GLIP as Hugging Face classes. Importing this package registers them with the Auto classes."""

from transformers import AutoConfig, AutoModelForZeroShotObjectDetection

from .configuration_glip import GlipBackboneConfig, GlipConfig
from .modeling_glip import GlipForObjectDetection, GlipObjectDetectionOutput

AutoConfig.register(GlipConfig.model_type, GlipConfig, exist_ok=True)
AutoModelForZeroShotObjectDetection.register(GlipConfig, GlipForObjectDetection, exist_ok=True)

__all__ = ["GlipBackboneConfig", "GlipConfig", "GlipForObjectDetection", "GlipObjectDetectionOutput"]
