"""GLIP as Hugging Face classes. Importing this package registers them with the Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForZeroShotObjectDetection, AutoProcessor

from .configuration_glip import GlipBackboneConfig, GlipConfig
from .image_processing_glip import GlipImageProcessor
from .losses import NonFiniteLossError
from .modeling_glip import GlipForObjectDetection
from .outputs import GlipObjectDetectionOutput
from .processing_glip import GlipProcessor

AutoConfig.register(GlipConfig.model_type, GlipConfig, exist_ok=True)
AutoModel.register(GlipConfig, GlipForObjectDetection, exist_ok=True)
AutoModelForZeroShotObjectDetection.register(GlipConfig, GlipForObjectDetection, exist_ok=True)
AutoImageProcessor.register(
    GlipConfig, image_processor_classes={"pil": GlipImageProcessor, "torchvision": GlipImageProcessor}, exist_ok=True
)
AutoProcessor.register(GlipConfig, GlipProcessor, exist_ok=True)

__all__ = [
    "GlipBackboneConfig",
    "GlipConfig",
    "GlipForObjectDetection",
    "GlipImageProcessor",
    "GlipObjectDetectionOutput",
    "GlipProcessor",
    "NonFiniteLossError",
]
