"""Our models as transformers' own: importing this makes them known to AutoConfig, AutoModelForImageTextToText and
AutoProcessor."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tefusion.hub.configuration import TEFusionConfig, TEFusionVisionConfig
from tefusion.hub.modeling import TEFusionForConditionalGeneration
from tefusion.hub.processing import TEFusionProcessor

AutoConfig.register(TEFusionConfig.model_type, TEFusionConfig, exist_ok=True)
AutoModelForImageTextToText.register(TEFusionConfig, TEFusionForConditionalGeneration, exist_ok=True)
AutoProcessor.register(TEFusionConfig, TEFusionProcessor, exist_ok=True)

__all__ = ["TEFusionConfig", "TEFusionForConditionalGeneration", "TEFusionProcessor", "TEFusionVisionConfig"]
