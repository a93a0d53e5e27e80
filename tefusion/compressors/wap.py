"""wap (LiteFrame, 2605.17260): a weighted average over each cell of k frames x 2 x 2 patches.

Our reading of the paper's summaries. The weights are `learned`, the softmax of one score a token, which starts as the
plain mean; or the tokens' own `activation`, their magnitude, without a parameter. One average stands for four places,
so no start is the image model's: a still video gives what one frame gives.
"""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.choices import nearest
from tefusion.compressors.base import Clip, Compressor
from tefusion.compressors.cell_tokens import cells, spread

WEIGHTS = ("learned", "activation")


class WAP(Compressor):
    source = "LiteFrame 2605.17260"
    stage = "after"
    adds_module = True
    starts_as_image = False

    def __init__(self, k: int, width: int, weights: str = "learned"):
        super().__init__(k)
        if weights not in WEIGHTS:
            raise ValueError(f"wap: weights {weights!r} is unknown{nearest(weights, WEIGHTS)}")
        self.score = nn.Parameter(torch.zeros(width)) if weights == "learned" else None

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        x = cells(x)
        return projector(spread(einsum(self.weigh(x), x, "b g h w cell, b g h w cell d -> b g h w d")))

    def weigh(self, x: Float[Tensor, "b g h2 w2 cell d"]) -> Float[Tensor, "b g h2 w2 cell"]:
        if self.score is not None:
            return torch.softmax(einsum(x, self.score, "... d, d -> ..."), dim=-1)
        size = x.norm(dim=-1)
        return size / size.sum(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
