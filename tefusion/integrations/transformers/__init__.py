"""The zoo inside the vision language models of transformers, and group attention inside their towers and timm's."""

from tefusion.integrations.transformers.group_attention import GroupAttention, group_attention_
from tefusion.integrations.transformers.towers import TOWERS

__all__ = ["TOWERS", "GroupAttention", "group_attention_"]
