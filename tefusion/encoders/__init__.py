"""Frames -> features: the towers. A tower knows nothing of compressors."""

from tefusion.encoders.config import PRESETS, VisionConfig
from tefusion.encoders.vit import Block, Tower, ViT

__all__ = ["PRESETS", "Block", "Tower", "ViT", "VisionConfig"]
