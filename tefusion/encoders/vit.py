"""GLM-4V-9B's vision tower (EVA2-CLIP-E): the norm sits on the sub-layer's output, inside the residual."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tefusion.encoders.config import VisionConfig
from tefusion.encoders.patchify import Patchify
from tefusion.kernels import Linear, ResidualLayerNorm, group_attention


class Block(nn.Module):
    """What every tower's block is: (rows, frames, tokens, width) to itself, attention over frames x tokens.

    `recompute` = "reentrant" or "non_reentrant" trades time for memory: the backward pass runs the block again.
    """

    recompute: str | None = None

    def __call__(self, x: Float[Tensor, "rows frames tokens width"]) -> Float[Tensor, "rows frames tokens width"]:
        if self.recompute is None or not torch.is_grad_enabled():
            return super().__call__(x)
        return checkpoint(super().__call__, x, use_reentrant=self.recompute == "reentrant")


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Float[Tensor, "rows length width"]) -> Float[Tensor, "rows length width"]:
        qkv = rearrange(self.qkv(x), "r l (three h d) -> r l three h d", three=3, h=self.heads)
        return self.out(rearrange(group_attention(qkv), "r l h d -> r l (h d)"))


class ViTBlock(Block):
    def __init__(self, width: int, heads: int, mlp: int, eps: float):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = ResidualLayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(Linear(width, mlp), nn.GELU(), Linear(mlp, width))
        self.norm2 = ResidualLayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[1]
        x = rearrange(x, "r f n d -> r (f n) d")
        x = self.norm1(x, self.attention(x))
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
