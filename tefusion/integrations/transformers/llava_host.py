"""LLaVA-OneVision and LLaVA-NeXT-Video: a tower of frames, two linear maps, and a pooling after or before them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tefusion.integrations.transformers.frame_host import FrameHost
from tefusion.integrations.transformers.host import linear, mentions


class LlavaHost(FrameHost):
    @property
    def tower(self) -> Any:
        tower = self.owner.vision_tower
        return getattr(tower, "vision_model", tower)

    @property
    def all_layers(self) -> list[nn.Module]:
        return list(self.tower.encoder.layers)

    @property
    def patch_map(self) -> Any:
        return self.tower.embeddings.patch_embedding

    @property
    def first_map(self) -> Any:
        return self.owner.multi_modal_projector.linear_1

    def placed(self, tokens: Tensor) -> Tensor:
        embeddings = self.tower.embeddings
        if (token := getattr(embeddings, "class_embedding", None)) is not None:
            tokens = torch.cat([token.expand(len(tokens), 1, -1), tokens], 1)
        tokens = tokens + embeddings.position_embedding(embeddings.position_ids)
        norm = getattr(self.tower, "pre_layrnorm", None)
        return tokens if norm is None else norm(tokens)

    def tail(self, x: Tensor) -> Tensor:
        projector = self.owner.multi_modal_projector
        return linear(projector.linear_2, projector.act(x))


class LlavaOnevisionHost(LlavaHost):
    extra_tokens = 1  # the newline at the end of a video

    def merged(self, grid: tuple[int, int]) -> tuple[int, int]:
        return math.ceil(grid[0] / 2), math.ceil(grid[1] / 2)

    def pool(self, x: Tensor) -> Tensor:
        lead = x.shape[:-3]
        size = list(self.merged((x.shape[-3], x.shape[-2])))
        x = F.interpolate(rearrange(x.flatten(0, -4), "s h w e -> s e h w").contiguous(), size=size, mode="bilinear")
        return rearrange(x, "s e h w -> s h w e").unflatten(0, lead)

    def answer(self, embeds: list[Tensor]) -> Any:
        newline = self.owner.image_newline[None]
        ended = [torch.cat([video, newline.to(video)]) for video in embeds]
        if len({len(video) for video in embeds}) == 1:
            return BaseModelOutputWithPooling(pooler_output=torch.stack(ended if self.ends_videos else embeds))
        one = torch.cat(ended)[None]
        return BaseModelOutputWithPooling(pooler_output=one if self.ends_videos else one[:, :-1])

    @property
    def ends_videos(self) -> bool:
        """Whether this version's `get_video_features` adds the newline; before 5.24 its caller did."""
        return mentions(type(self.owner).get_video_features, "image_newline")


class LlavaNextVideoHost(LlavaHost):
    @property
    def stride(self) -> int:
        return self.owner.config.spatial_pool_stride

    def merged(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid[0] // self.stride, grid[1] // self.stride

    def gather(self, x: Tensor) -> Tensor:
        lead = x.shape[:-3]
        x = self.owner.vision_resampler(rearrange(x.flatten(0, -4), "s h w d -> s (h w) d"))
        return x.unflatten(1, self.merged((self.side, self.side))).unflatten(0, lead)

    def answer(self, embeds: list[Tensor]) -> Any:
        videos: Any = list(embeds)
        return BaseModelOutputWithPooling(pooler_output=videos)
