"""Features -> embeds: a 2x2 merge, then GLM-4V-9B's gated unit; or the merger of Qwen2-VL and Kimi K2.5."""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.encoders.inflate import inflated_linear
from tefusion.kernels import Linear


class Merge(nn.Module):
    """A convolution with kernel = stride = 2 over `frames` concatenated frames, written as the linear map it is.

    An odd grid drops its last row and column, as the convolution does.
    """

    def __init__(self, width: int, embed_dim: int, frames: int = 1):
        super().__init__()
        self.proj = inflated_linear(4 * width, frames, embed_dim)

    def forward(self, x: Float[Tensor, "*lead h w d"]) -> Float[Tensor, "*lead h2 w2 e"]:
        h, w = x.shape[-3] // 2 * 2, x.shape[-2] // 2 * 2
        return self.proj(rearrange(x[..., :h, :w, :], "... (h p) (w q) d -> ... h w (d p q)", p=2, q=2))


class GLU(nn.Module):
    def __init__(self, embed_dim: int, hidden: int):
        super().__init__()
        self.proj = Linear(embed_dim, embed_dim, bias=False)
        self.norm = nn.LayerNorm(embed_dim)
        self.gate = Linear(embed_dim, hidden, bias=False)
        self.up = Linear(embed_dim, hidden, bias=False)
        self.down = Linear(hidden, embed_dim, bias=False)

    def forward(self, x: Float[Tensor, "*lead e"]) -> Float[Tensor, "*lead e"]:
        x = F.gelu(self.norm(self.proj(x)))
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Projector(nn.Module):
    """Both halves are public: a compressor that merges space itself calls `glu` alone, and the other is left out."""

    def __init__(self, width: int, embed_dim: int, glu: int, frames: int = 1, merges: bool = True):
        super().__init__()
        merge = Merge(width, embed_dim, frames)  # drawn in any case, so that a seed draws the same behind it
        if merges:
            self.merge = merge
        self.glu = GLU(embed_dim, glu)

    def forward(self, x: Float[Tensor, "*lead h w d"]) -> Float[Tensor, "*lead h2 w2 e"]:
        return self.glu(self.merge(x))


class PatchMerger(nn.Module):
    """Qwen2-VL's (2409.12191) and Kimi K2.5's projector: a norm of each token, then an MLP over 2x2 of them."""

    def __init__(self, width: int, embed_dim: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.up, self.down = Linear(4 * width, 4 * width), Linear(4 * width, embed_dim)

    def forward(self, x: Float[Tensor, "*lead h w d"]) -> Float[Tensor, "*lead h2 w2 e"]:
        h, w = x.shape[-3] // 2 * 2, x.shape[-2] // 2 * 2
        x = rearrange(self.norm(x)[..., :h, :w, :], "... (h p) (w q) d -> ... h w (p q d)", p=2, q=2)
        return self.down(F.gelu(self.up(x)))
