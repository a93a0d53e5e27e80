"""qformer (as re-implemented in MotionBench, 2501.02955; BLIP-2, 2301.12597): m learned queries read k frames' embeds.

Learned from scratch, as the paper says: it cannot start as the identity. Frame positions on the keys start at zero, so
that a still video gives what one frame gives. Two layers with cross-attention in each (Video-LLaMA's choice), the norm
on the sum (BERT's choice). m is the merged grid, so that all methods cost the decoder the same.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor
from tefusion.kernels import Linear


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key = Linear(width, width, bias=False)  # the softmax would cancel it
        self.value = Linear(width, width)
        self.out = Linear(width, width)

    def forward(self, x: Float[Tensor, "r m e"], keys: Float[Tensor, "r l e"]) -> Float[Tensor, "r m e"]:
        projected = self.query(x), self.key(keys), self.value(keys)
        q, k, v = (rearrange(y, "r l (h d) -> r h l d", h=self.heads) for y in projected)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "r h m d -> r m (h d)"))


class QFormerLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = CrossAttention(width, heads)
        self.cross = CrossAttention(width, heads)
        self.mlp = nn.Sequential(Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=1e-12) for _ in range(3))

    def forward(self, x: Float[Tensor, "r m e"], keys: Float[Tensor, "r l e"]) -> Float[Tensor, "r m e"]:
        x = self.norm1(x + self.attention(x, x))
        x = self.norm2(x + self.cross(x, keys))
        return self.norm3(x + self.mlp(x))


class QFormer(Compressor):
    source = "BLIP-2 2301.12597"
    stage = "after"
    order_sensitive = True
    adds_module = True
    starts_as_image = False

    def __init__(self, k: int, embed_dim: int, grid: tuple[int, int], layers: int = 2, position_std: float = 0.0):
        super().__init__(k)
        self.merged = grid[0] // 2, grid[1] // 2
        self.queries = nn.Parameter(torch.empty(self.merged[0] * self.merged[1], embed_dim).normal_(std=0.02))
        self.position = nn.Parameter(position_std * torch.randn(k, 1, embed_dim))
        heads = max(1, embed_dim // 64)
        self.layers = nn.ModuleList(QFormerLayer(embed_dim, heads) for _ in range(layers))

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        x = projector(x)
        check_grid("qformer", self.merged, tuple(x.shape[3:5]))
        batch, (h, w) = x.shape[0], self.merged
        keys = rearrange(rearrange(x, "b g k h w e -> (b g) k (h w) e") + self.position, "r k n e -> r (k n) e")
        x = repeat(self.queries, "m e -> r m e", r=keys.shape[0])
        for layer in self.layers:
            x = layer(x, keys)
        return rearrange(x, "(b g) (h w) e -> b g h w e", b=batch, h=h, w=w)


def check_grid(name: str, made: tuple[int, ...], here: tuple[int, ...]) -> None:
    """Learned queries are those of one merged grid."""
    if here != made:
        for_, has = ("x".join(map(str, grid)) for grid in (made, here))
        raise ValueError(f"{name}: its queries were made for {for_} tokens a group, this video has {has}")
