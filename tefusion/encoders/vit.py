"""GLM-4V-9B's vision tower (EVA2-CLIP-E): the norm sits on the sub-layer's output, inside the residual."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tefusion.encoders.config import VisionConfig
from tefusion.encoders.patchify import Patchify
from tefusion.kernels import Linear, ResidualLayerNorm, group_attention, rotate


class Block(nn.Module):
    """What every tower's block is: (rows, frames, tokens, width) to itself, attention over frames x tokens.

    An open block also takes `positions`, a (rows, frames x tokens, 3) of seconds, row and column by which it turns
    queries and keys, and has `attend`. `recompute` = "reentrant" or "non_reentrant" trades time for memory: the
    backward pass runs the block again.
    """

    recompute: str | None = None

    def __call__(
        self, x: Float[Tensor, "rows frames tokens width"], *positions: Tensor
    ) -> Float[Tensor, "rows frames tokens width"]:
        return self.recomputed(super().__call__, x, *positions)

    def recomputed(self, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if self.recompute is None or not torch.is_grad_enabled():
            return compute(*inputs)
        return checkpoint(compute, *inputs, use_reentrant=self.recompute == "reentrant")


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(
        self, x: Float[Tensor, "rows length width"], positions: Float[Tensor, "rows length 3"] | None = None
    ) -> Float[Tensor, "rows length width"]:
        qkv = rearrange(self.qkv(x), "r l (three h d) -> r l three h d", three=3, h=self.heads)
        if positions is not None:
            qkv = rotate(qkv, positions)
        return self.out(rearrange(group_attention(qkv), "r l h d -> r l (h d)"))


class ViTBlock(Block):
    def __init__(self, width: int, heads: int, mlp: int, eps: float):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = ResidualLayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(Linear(width, mlp), nn.GELU(), Linear(mlp, width))
        self.norm2 = ResidualLayerNorm(width, eps=eps)

    def attend(self, x: Float[Tensor, "rows length width"]) -> Float[Tensor, "rows length width"]:
        """What the attention adds to `x`, over any rows."""
        norm = self.norm1
        return self.recomputed(
            lambda x: F.layer_norm(self.attention(x), norm.normalized_shape, norm.weight, norm.bias, norm.eps), x
        )

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        frames = x.shape[1]
        x = rearrange(x, "r f n d -> r (f n) d")
        x = self.norm1(x, self.attention(x, positions))
        x = self.norm2(x, self.mlp(x))
        return rearrange(x, "r (f n) d -> r f n d", f=frames)


class Tower(nn.Module):
    """Frames -> features: `norm(blocks(patchify(x)))`, with `prefix` tokens a frame before those of its patches."""

    patch_size: int
    width: int
    prefix: int
    patchify: nn.Module
    blocks: nn.ModuleList
    norm: nn.Module

    def blocks_at(self, height: int, width: int) -> nn.ModuleList:
        """The blocks for frames of this many patches down and across: where a tower's own need to know."""
        return self.blocks


class ViT(Tower):
    """GLM-4V-9B's: one class token, and no norm at the end."""

    def __init__(self, config: VisionConfig, frames: int = 1):
        super().__init__()
        self.patch_size, self.width, self.prefix = config.patch_size, config.width, 1
        self.patchify = Patchify(config.patch_size, config.width, config.grid, frames)
        self.blocks = nn.ModuleList(
            ViTBlock(config.width, config.heads, config.mlp, config.eps) for _ in range(config.depth)
        )
        self.norm = nn.Identity()
