"""Our models as transformers' own: importing this makes them known to AutoConfig, AutoModelForImageTextToText,
AutoModel (a tower alone) and AutoProcessor."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from tefusion.hub.configuration import TEFusionConfig, TEFusionVisionConfig
from tefusion.hub.modeling import TEFusionForConditionalGeneration
from tefusion.hub.processing import TEFusionProcessor
from tefusion.hub.tower import TEFusionVisionModel

AutoConfig.register(TEFusionConfig.model_type, TEFusionConfig, exist_ok=True)
AutoConfig.register(TEFusionVisionConfig.model_type, TEFusionVisionConfig, exist_ok=True)
AutoModel.register(TEFusionVisionConfig, TEFusionVisionModel, exist_ok=True)
AutoModelForImageTextToText.register(TEFusionConfig, TEFusionForConditionalGeneration, exist_ok=True)
AutoProcessor.register(TEFusionConfig, TEFusionProcessor, exist_ok=True)

__all__ = [
    "TEFusionConfig",
    "TEFusionForConditionalGeneration",
    "TEFusionProcessor",
    "TEFusionVisionConfig",
    "TEFusionVisionModel",
]
