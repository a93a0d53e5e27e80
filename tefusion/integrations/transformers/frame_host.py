"""Hosts whose towers' layers see (frames, tokens, width) and take frames of one size, with a class token or without."""

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from tefusion.integrations.transformers.host import Host, Sizes


class FrameBlock(nn.Module):
    """A layer over rows of several frames; `more` is what else its forward asks for."""

    def __init__(self, layer: nn.Module, *more: Any):
        super().__init__()
        self.layer, self.more = layer, more

    def forward(self, x: Tensor) -> Tensor:
        """(rows, frames, tokens, width): a row is one sequence"""
        out = self.layer(x.flatten(1, 2), *self.more)
        return (out[0] if isinstance(out, tuple) else out).unflatten(1, x.shape[1:3])


class FrameHost(Host):
    @property
    def vision(self) -> Any:
        return self.owner.config.vision_config

    @property
    def image_size(self) -> int:
        return side_of(self.vision.image_size)

    @property
    def side(self) -> int:
        return self.image_size // side_of(self.vision.patch_size)

    @property
    def sizes(self) -> Sizes:
        vision, text = self.vision, self.owner.config.text_config
        grid = self.side, self.side
        depth = len(self.layers)
        return Sizes(vision.hidden_size, text.hidden_size, self.hidden, depth, vision.num_attention_heads, grid)

    @property
    def hidden(self) -> int:
        """The width behind the projector's first map."""
        return self.owner.config.text_config.hidden_size

    @property
    def all_layers(self) -> list[nn.Module]:
        raise NotImplementedError

    @property
    def layers(self) -> list[nn.Module]:
        """Those before the layer whose states the model reads."""
        at = getattr(self.owner.config, "vision_feature_layer", -1)
        if not isinstance(at, int):
            raise ValueError(f"a model that reads several layers of its tower ({at}) cannot be compressed")
        layers = self.all_layers
        return layers[: at if at >= 0 else len(layers) + 1 + at]

    def videos(self, pixels: Any, grid: Tensor | None) -> list[Tensor]:
        if isinstance(pixels, Tensor):
            return [pixels.to(self.patch_map.weight.dtype)]
        return [video[None].to(self.patch_map.weight.dtype) for video in pixels]

    def grid(self, video: Tensor, sizes: Tensor | None, index: int) -> tuple[int, int]:
        return self.patches_of(*video.shape[-2:])

    def patches_of(self, height: int, width: int) -> tuple[int, int]:
        size = self.image_size
        if (height, width) != (size, size):
            raise ValueError(f"this model's frames are {size}x{size} pixels, got {height}x{width}")
        return self.side, self.side

    def embed(self, x: Tensor, patches: nn.Linear | None, grid: tuple[int, int]) -> Tensor:
        batch, x = len(x), x.flatten(0, 1)
        if patches is None:
            tokens = self.patch_map(x).flatten(2).transpose(1, 2)
        else:
            tokens = patches(rearrange(x, "s c (h p) (w q) -> s (h w) (c p q)", h=self.side, w=self.side))
        return self.placed(tokens).unflatten(0, (batch, -1))

    def placed(self, tokens: Tensor) -> Tensor:
        """(frames, patches, width) -> what the first layer takes: class token, positions."""
        raise NotImplementedError

    def blocks(self, grid: tuple[int, int]) -> nn.ModuleList:
        return nn.ModuleList(FrameBlock(layer, None) for layer in self.layers)

    def features(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        prefix = x.shape[2] - grid[0] * grid[1]
        if prefix and self.owner.config.vision_feature_select_strategy != "default":
            raise ValueError("a model that keeps its class token (vision_feature_select_strategy) cannot be compressed")
        return rearrange(x[:, :, prefix:], "b s (h w) d -> b s h w d", h=grid[0])


def side_of(size: int | list[int] | tuple[int, ...]) -> int:
    """Of a square that the configuration gives as one number or as two."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"a model whose frames or patches are not square ({size}) cannot be compressed")
    return sides.pop()
