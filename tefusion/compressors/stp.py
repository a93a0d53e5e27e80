"""stp (VideoLLaMA2, 2406.07476, table 1): stc with the mean of each k x 2 x 2 cell in place of its convolution."""

from einops import reduce
from jaxtyping import Float
from torch import Tensor

from tefusion.compressors.cell_tokens import cells
from tefusion.compressors.stc import STC


class STP(STC):
    order_sensitive = False

    def __init__(self, k: int, width: int, embed_dim: int, layers: int = 4):
        super().__init__(k, width, embed_dim, layers)
        del self.sampler

    def sample(self, x: Float[Tensor, "b g k h w e"]) -> Float[Tensor, "b g h2 w2 e"]:
        return reduce(cells(x), "b g h w cell e -> b g h w e", "mean")
