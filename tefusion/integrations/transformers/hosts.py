"""The video models that take a compressor: the class that makes features of videos -> its host. A line a model."""

from typing import Any

from torch import nn

from tefusion.integrations.transformers.glm_host import Glm4vHost
from tefusion.integrations.transformers.host import Host
from tefusion.integrations.transformers.llava_host import LlavaNextVideoHost, LlavaOnevisionHost
from tefusion.integrations.transformers.picture_host import InternVLHost, SmolVLMHost
from tefusion.integrations.transformers.qwen_host import Qwen2VLHost, Qwen3VLHost, Qwen25VLHost
from tefusion.integrations.transformers.video_llama_host import VideoLlama3Host

HOSTS: dict[str, type[Host]] = {
    "LlavaOnevisionModel": LlavaOnevisionHost,
    "LlavaNextVideoModel": LlavaNextVideoHost,
    "Qwen2VLModel": Qwen2VLHost,
    "Qwen2_5_VLModel": Qwen25VLHost,
    "Qwen3VLModel": Qwen3VLHost,
    "Glm4vModel": Glm4vHost,
    "VideoLlama3Model": VideoLlama3Host,
    "InternVLModel": InternVLHost,
    "SmolVLMModel": SmolVLMHost,
}


def find_owner(model: nn.Module) -> Any:
    """The part of `model` that is in `HOSTS`. Raises ValueError naming what was looked for."""
    for part in model.modules():
        if any(kind.__name__ in HOSTS for kind in type(part).__mro__):
            return part
    raise ValueError(
        f"{type(model).__name__} is no video model that takes a compressor; looked for a module of class "
        f"{', '.join(sorted(HOSTS))}"
    )


def host_of(owner: nn.Module) -> Host:
    return next(HOSTS[kind.__name__] for kind in type(owner).__mro__ if kind.__name__ in HOSTS)(owner)
