"""Pixels -> tokens: one linear map a patch, a class token, learned positions (GLM-4V-9B)."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.encoders.inflate import inflated_linear


def resample_positions(
    table: Float[Tensor, "n d"], old: tuple[int, int], new: tuple[int, int], prefix: int = 1
) -> Float[Tensor, "m d"]:
    """The `prefix` rows are kept; the grid is resampled, bicubic and antialiased, in fp32."""
    if old == new:
        return table
    kept, grid = table[:prefix], rearrange(table[prefix:].float(), "(h w) d -> 1 d h w", h=old[0], w=old[1])
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([kept, rearrange(grid, "1 d h w -> (h w) d").to(table.dtype)])


class Patchify(nn.Module):
    """`frames` frames share the channel axis (frame-major): one image makes three channels, k frames 3k."""

    def __init__(self, patch_size: int, width: int, grid: tuple[int, int], frames: int = 1):
        super().__init__()
        self.patch_size, self.grid = patch_size, grid
        self.proj = inflated_linear(3 * patch_size**2, frames, width)
        self.cls = nn.Parameter(torch.empty(1, width).normal_(std=0.02))
        self.position = nn.Parameter(torch.empty(1 + grid[0] * grid[1], width).normal_(std=0.02))

    def forward(self, x: Float[Tensor, "b s c height width"]) -> Float[Tensor, "b s n d"]:
        p = self.patch_size
        h, w = x.shape[-2] // p, x.shape[-1] // p
        x = rearrange(x[..., : h * p, : w * p], "b s c (h p) (w q) -> b s (h w) (c p q)", p=p, q=p)
        x = self.proj(x)
        cls = repeat(self.cls, "1 d -> b s 1 d", b=x.shape[0], s=x.shape[1])
        return torch.cat([cls, x], dim=2) + resample_positions(self.position, self.grid, (h, w))
