"""Self-attention with weights of its own, for methods that look at each location over time."""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.kernels import Linear, group_attention


class SelfAttention(nn.Module):
    """Over each row; `causal` lets a token see itself and what came before it."""

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Float[Tensor, "rows length width"]) -> Float[Tensor, "rows length width"]:
        qkv = rearrange(self.qkv(x), "r l (three h d) -> r l three h d", three=3, h=self.heads)
        if not self.causal:
            return self.out(rearrange(group_attention(qkv), "r l h d -> r l (h d)"))
        q, k, v = rearrange(qkv, "r l three h d -> three r h l d").unbind(0)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v, is_causal=True), "r h l d -> r l (h d)"))
