"""region (TokenPacker, 2407.02392; Oryx, 2409.12961): the mean of a cell of k frames x 2 x 2 patches asks its tokens.

y = q + softmax(q Wq (X Wk)^T / sqrt(d)) X with q the mean of X, over each cell alone. One token stands for four places,
so no start is the image model's: a still video gives what one frame gives.
"""

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor
from tefusion.compressors.cell_tokens import cells, spread
from tefusion.kernels import Linear


class Region(Compressor):
    source = "TokenPacker 2407.02392"
    stage = "after"
    adds_module = True
    starts_as_image = False

    def __init__(self, k: int, width: int):
        super().__init__(k)
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        x = cells(x)
        mean = reduce(x, "b g h w cell d -> b g h w d", "mean")
        scores = einsum(self.query(mean), self.key(x), "b g h w d, b g h w cell d -> b g h w cell")
        asked = torch.softmax(scores / x.shape[-1] ** 0.5, dim=-1)
        return projector(spread(mean + einsum(asked, x, "b g h w cell, b g h w cell d -> b g h w d")))
