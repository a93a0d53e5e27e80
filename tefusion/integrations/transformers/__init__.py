"""The zoo inside the vision language models of transformers, and group attention inside their towers and timm's."""

from tefusion.integrations.transformers.compress_video import CompressedVideo, compress_video_
from tefusion.integrations.transformers.group_attention import GroupAttention, group_attention_
from tefusion.integrations.transformers.hosts import HOSTS
from tefusion.integrations.transformers.processor import compress_processor_
from tefusion.integrations.transformers.saved import load_compressed
from tefusion.integrations.transformers.towers import TOWERS

__all__ = [
    "HOSTS",
    "TOWERS",
    "CompressedVideo",
    "GroupAttention",
    "compress_processor_",
    "compress_video_",
    "group_attention_",
    "load_compressed",
]
