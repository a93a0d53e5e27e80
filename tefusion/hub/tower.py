"""A tower alone as a transformers model: what `tefusion convert` makes of a checkpoint without a decoder of ours."""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from tefusion.encoders import Tower, VisionConfig, ViT
from tefusion.encoders.inflate import inflate
from tefusion.hub.complete import Complete
from tefusion.hub.configuration import TEFusionVisionConfig
from tefusion.vision import VideoEncoder, assemble, method_for

PATCHES = "patchify.proj.weight"  # the map that a method may widen to several frames


def builder(tower: str) -> Callable[[VisionConfig, int], Tower]:
    """What builds the tower of this kind."""
    if tower == "glm4v":
        return ViT
    from tefusion.encoders.timm_vit import timm_tower

    return timm_tower(tower.removeprefix("timm:"))


class TEFusionVisionModel(Complete):
    config_class = TEFusionVisionConfig
    main_input_name = "pixel_values_videos"
    input_modalities = ["video"]  # noqa: RUF012, a list in transformers too
    _no_split_modules = ["ViTBlock", "TimmBlock"]  # noqa: RUF012, transformers makes it a set of the instance

    def __init__(self, config: TEFusionVisionConfig):
        super().__init__(config)
        self.tower = builder(config.tower)(config.sizes, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Our modules draw their own when they are made."""

    def forward(self, pixel_values_videos: Float[Tensor, "b t 3 height width"], **kwargs) -> BaseModelOutput:
        """The features of each frame's patches, (b, t, n, d), of pixels that are normalised as the tower's own."""
        x = self.tower.patchify(pixel_values_videos)
        batch = len(x)
        x = rearrange(x, "b t n d -> (b t) 1 n d")
        for block in self.tower.blocks:
            x = block(x)
        x = self.tower.norm(rearrange(x, "(b t) 1 n d -> b t n d", b=batch))
        return BaseModelOutput(last_hidden_state=x[:, :, self.tower.prefix :])

    @torch.no_grad()
    def video_encoder(self, compressor: str, k: int, **options: object) -> VideoEncoder:
        """The tower with a copy of its weights around a compressor of the zoo; compressor and projector are fresh.

        The projector's embeds are `embed_dim` of the configuration wide.
        """
        config: Any = self.config
        method = method_for(config.sizes, compressor, k, **options)
        encoder = assemble(config.sizes, method, builder(config.tower))
        state = dict(self.tower.state_dict())
        if method.in_frames > 1:
            state[PATCHES] = inflate(state[PATCHES], method.in_frames)
        encoder.tower.load_state_dict(state)
        return encoder.to(self.dtype)
