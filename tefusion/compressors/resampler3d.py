"""resampler3d (MiniCPM-V 4.5, 2509.18154; Perceiver, 2103.03206): m queries read the k x n tokens of a group.

One pre-norm cross-attention and an MLP, in the decoder's width. Keys carry fixed positions, rows and columns and the
seconds since the group's first frame; values carry none. Queries are learned from scratch, so no start is the image
model's: positions add to the scores of a frame's tokens alike only where the keys are linear in them, as here, and so
a still video gives what one frame gives. m is the merged grid, and the queries replace the projector's merge.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor
from tefusion.compressors.qformer import check_grid
from tefusion.compressors.sincos import sincos
from tefusion.kernels import Linear


class Reader(nn.Module):
    """Perceiver's cross-attention layer: queries of one width, what is read of another."""

    def __init__(self, width: int, read: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(read), nn.LayerNorm(width)
        self.query, self.out = Linear(width, width), Linear(width, width)
        self.key = Linear(read, width, bias=False)  # the softmax would cancel it
        self.value = Linear(read, width)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))

    def forward(
        self, x: Float[Tensor, "r m e"], read: Float[Tensor, "r l d"], position: Float[Tensor, "r l d"]
    ) -> Float[Tensor, "r m e"]:
        read = self.norm2(read)
        projected = self.query(self.norm1(x)), self.key(read + position), self.value(read)
        q, k, v = (rearrange(y, "r l (h d) -> r h l d", h=self.heads) for y in projected)
        x = x + self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "r h m d -> r m (h d)"))
        return x + self.mlp(self.norm3(x))


class Resampler3D(Compressor):
    source = "MiniCPM-V 4.5 2509.18154"
    stage = "after"
    order_sensitive = True
    adds_module = True
    starts_as_image = False
    owns_merge = True

    def __init__(self, k: int, width: int, embed_dim: int, grid: tuple[int, int]):
        super().__init__(k)
        self.merged = grid[0] // 2, grid[1] // 2
        self.queries = nn.Parameter(torch.empty(self.merged[0] * self.merged[1], embed_dim).normal_(std=0.02))
        self.reader = Reader(embed_dim, width, heads=max(1, embed_dim // 64))

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        batch, _, _, h, w, d = x.shape
        check_grid("resampler3d", self.merged, (h // 2, w // 2))
        seconds = rearrange(clip.seconds, "b (g k) -> (b g) k", k=self.k)
        when = rearrange(sincos(seconds - seconds[:, :1], d), "r k d -> r k 1 1 d")
        position = rearrange(sincos_grid(h, w, d, x.device) + when, "r k h w d -> r (k h w) d").to(x.dtype)
        queries = repeat(self.queries, "m e -> r m e", r=len(seconds))
        read = self.reader(queries, rearrange(x, "b g k h w d -> (b g) (k h w) d"), position)
        return projector.get_submodule("glu")(rearrange(read, "(b g) (h w) e -> b g h w e", b=batch, w=self.merged[1]))


def sincos_grid(height: int, width: int, channels: int, device: torch.device) -> Float[Tensor, "h w c"]:
    """Half of the channels say the row, the others the column."""
    down, across = (torch.arange(n, device=device, dtype=torch.float32) for n in (height, width))
    rows = repeat(sincos(down, channels // 2), "h c -> h w c", w=width)
    columns = repeat(sincos(across, channels - channels // 2), "w c -> h w c", h=height)
    return torch.cat([rows, columns], dim=-1)
