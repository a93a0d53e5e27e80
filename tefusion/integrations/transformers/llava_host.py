"""LLaVA-OneVision and LLaVA-NeXT-Video: a tower of frames, two linear maps, and a pooling after or before them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tefusion.integrations.transformers.host import Host, Sizes, linear, mentions


class FrameBlock(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(rows, frames, tokens, width): a row is one sequence"""
        out = self.layer(x.flatten(1, 2), None)
        return (out[0] if isinstance(out, tuple) else out).unflatten(1, x.shape[1:3])


class LlavaHost(Host):
    @property
    def vision(self) -> Any:
        return self.owner.config.vision_config

    @property
    def side(self) -> int:
        return self.vision.image_size // self.vision.patch_size

    @property
    def sizes(self) -> Sizes:
        vision, text = self.vision, self.owner.config.text_config
        grid = self.side, self.side
        depth = len(self.layers)
        return Sizes(vision.hidden_size, text.hidden_size, text.hidden_size, depth, vision.num_attention_heads, grid)

    @property
    def tower(self) -> Any:
        tower = self.owner.vision_tower
        return getattr(tower, "vision_model", tower)

    @property
    def layers(self) -> list[nn.Module]:
        """Those before the layer whose states the model reads."""
        at = self.owner.config.vision_feature_layer
        if not isinstance(at, int):
            raise ValueError(f"a model that reads several layers of its tower ({at}) cannot be compressed")
        layers = list(self.tower.encoder.layers)
        return layers[: at if at >= 0 else len(layers) + 1 + at]

    @property
    def patch_map(self) -> Any:
        return self.tower.embeddings.patch_embedding

    @property
    def first_map(self) -> Any:
        return self.owner.multi_modal_projector.linear_1

    def videos(self, pixels: Any, grid: Tensor | None) -> list[Tensor]:
        if isinstance(pixels, Tensor):
            return [pixels.to(self.patch_map.weight.dtype)]
        return [video[None].to(self.patch_map.weight.dtype) for video in pixels]

    def grid(self, video: Tensor, sizes: Tensor | None, index: int) -> tuple[int, int]:
        return self.patches_of(*video.shape[-2:])

    def patches_of(self, height: int, width: int) -> tuple[int, int]:
        size = self.vision.image_size
        if (height, width) != (size, size):
            raise ValueError(f"this model's frames are {size}x{size} pixels, got {height}x{width}")
        return self.side, self.side

    def embed(self, x: Tensor, patches: nn.Linear | None, grid: tuple[int, int]) -> Tensor:
        embeddings, size = self.tower.embeddings, self.vision.patch_size
        batch, x = len(x), x.flatten(0, 1)
        if patches is None:
            tokens = self.patch_map(x).flatten(2).transpose(1, 2)
        else:
            tokens = patches(rearrange(x, "s c (h p) (w q) -> s (h w) (c p q)", p=size, q=size))
        if (token := getattr(embeddings, "class_embedding", None)) is not None:
            tokens = torch.cat([token.expand(len(tokens), 1, -1), tokens], 1)
        tokens = tokens + embeddings.position_embedding(embeddings.position_ids)
        if (norm := getattr(self.tower, "pre_layrnorm", None)) is not None:
            tokens = norm(tokens)
        return tokens.unflatten(0, (batch, -1))

    def blocks(self, grid: tuple[int, int]) -> nn.ModuleList:
        return nn.ModuleList(map(FrameBlock, self.layers))

    def features(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        prefix = x.shape[2] - grid[0] * grid[1]
        if prefix and self.owner.config.vision_feature_select_strategy != "default":
            raise ValueError("a model that keeps its class token (vision_feature_select_strategy) cannot be compressed")
        return rearrange(x[:, :, prefix:], "b s (h w) d -> b s h w d", h=grid[0])

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
