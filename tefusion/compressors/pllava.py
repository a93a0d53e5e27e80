"""pllava (as re-implemented in MotionBench, 2501.02955; PLLaVA, 2404.16994): project, then the mean over k frames."""

from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor


class PLLaVA(Compressor):
    source = "PLLaVA 2404.16994"
    stage = "after"

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        return reduce(projector(x), "b g k h w e -> b g h w e", "mean")
