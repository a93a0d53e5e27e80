"""Kimi K2.5's MoonViT3d: pre-norm blocks whose queries and keys turn by row and column, the same in every frame.

Time enters outside the blocks: te_fusion's `temporal_position=sincos` adds it and `readout=mean` is its pooling.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.encoders.config import VisionConfig
from tefusion.encoders.inflate import inflated_linear
from tefusion.encoders.vit import Block, Tower
from tefusion.kernels import Linear, group_attention

BASE = 10_000.0
EPS = 1e-5


def axial_turns(height: int, width: int, dim: int, like: Tensor) -> Float[Tensor, "n pairs"]:
    """The angle of every pair of channels of every patch: columns and rows by turns, from fast to slow."""
    rates = BASE ** -(torch.arange(dim // 4, device=like.device, dtype=torch.float32) / (dim // 4))
    row, column = (torch.arange(size, device=like.device, dtype=torch.float32) for size in (height, width))
    angles = torch.stack(
        [
            repeat(torch.outer(column, rates), "w r -> (h w) r", h=height),
            repeat(torch.outer(row, rates), "h r -> (h w) r", w=width),
        ],
        dim=-1,
    )
    return rearrange(angles, "n r two -> n (r two)")


class MoonPatchify(nn.Module):
    """Other sizes than the table's resample it, bicubic without antialiasing."""

    def __init__(self, patch_size: int, width: int, grid: tuple[int, int], frames: int = 1):
        super().__init__()
        self.patch_size, self.grid = patch_size, grid
        self.proj = inflated_linear(3 * patch_size**2, frames, width)
        self.position = nn.Parameter(torch.empty(grid[0] * grid[1], width).normal_(std=0.02))

    def forward(self, x: Float[Tensor, "b s c height width"]) -> Float[Tensor, "b s n d"]:
        p = self.patch_size
        h, w = x.shape[-2] // p, x.shape[-1] // p
        x = rearrange(x[..., : h * p, : w * p], "b s c (h p) (w q) -> b s (h w) (c p q)", p=p, q=p)
        return self.proj(x) + self.positions(h, w)

    def positions(self, height: int, width: int) -> Float[Tensor, "n d"]:
        if (height, width) == self.grid:
            return self.position
        table = rearrange(self.position.float(), "(h w) d -> 1 d h w", h=self.grid[0])
        table = F.interpolate(table, size=(height, width), mode="bicubic", align_corners=False)
        return rearrange(table, "1 d h w -> (h w) d").to(self.position.dtype)


class MoonAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.out = heads, Linear(width, 3 * width), Linear(width, width)

    def forward(
        self, x: Float[Tensor, "rows length width"], turns: Float[Tensor, "length pairs"]
    ) -> Float[Tensor, "rows length width"]:
        qkv = rearrange(self.qkv(x), "r l (three h d) -> r l three h d", three=3, h=self.heads)
        qkv = torch.cat([turned(qkv[:, :, :2], turns), qkv[:, :, 2:]], dim=2)
        return self.out(rearrange(group_attention(qkv), "r l h d -> r l (h d)"))


def turned(
    x: Float[Tensor, "rows length two heads dim"], turns: Float[Tensor, "length pairs"]
) -> Float[Tensor, "rows length two heads dim"]:
    """Each channel turns with its neighbour."""
    cos, sin = (rearrange(f(turns), "l p -> l 1 1 p").to(x.dtype) for f in (torch.cos, torch.sin))
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class MoonBlock(Block):
    def __init__(self, width: int, heads: int, mlp: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, eps=EPS), MoonAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(Linear(width, mlp), nn.GELU(approximate="tanh"), Linear(mlp, width))

    def forward(
        self, x: Float[Tensor, "rows frames tokens width"], turns: Float[Tensor, "tokens pairs"]
    ) -> Float[Tensor, "rows frames tokens width"]:
        frames = x.shape[1]
        x = rearrange(x, "r f n d -> r (f n) d")
        x = x + self.attention(self.norm1(x), repeat(turns, "n p -> (f n) p", f=frames))
        x = x + self.mlp(self.norm2(x))
        return rearrange(x, "r (f n) d -> r f n d", f=frames)


class Placed(nn.Module):
    """A block that knows where the patches of this call lie; nothing is remembered from one call to the next."""

    def __init__(self, block: MoonBlock, turns: Tensor):
        super().__init__()
        self.block, self.turns = block, turns

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.turns)


class MoonViT(Tower):
    """The tower of `config`'s sizes, whose `image_size` is that of the table of positions."""

    def __init__(self, config: VisionConfig, frames: int = 1):
        super().__init__()
        self.patch_size, self.width, self.prefix = config.patch_size, config.width, 0
        self.dim = config.width // config.heads
        if self.dim % 4:
            raise ValueError(f"heads of {self.dim} channels do not turn by rows and columns: 4 must divide them")
        self.patchify = MoonPatchify(config.patch_size, config.width, config.grid, frames)
        self.blocks = nn.ModuleList(MoonBlock(config.width, config.heads, config.mlp) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=EPS)

    def blocks_at(self, height: int, width: int) -> nn.ModuleList:
        turns = axial_turns(height, width, self.dim, self.patchify.get_parameter("position"))
        return nn.ModuleList(Placed(block, turns) for block in self.blocks if isinstance(block, MoonBlock))
