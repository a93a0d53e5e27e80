"""tpool (NVILA, 2412.04468): the mean over k frames before the projector."""

from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor


class TPool(Compressor):
    source = "NVILA 2412.04468"
    stage = "after"

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        return projector(reduce(x, "b g k h w d -> b g h w d", "mean"))
