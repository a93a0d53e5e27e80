"""kangaroo (as re-implemented in MotionBench, 2501.02955; Kangaroo, 2408.15542): concatenate k frames, MLP, project.

The paper leaves the MLP's size open. Two layers with 2 * width hidden units can say the mean of the frames exactly,
since gelu(x) - gelu(-x) = x: that is the initial value, so that a still video is an image.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor
from tefusion.encoders.inflate import inflate
from tefusion.kernels import Linear


class Kangaroo(Compressor):
    source = "Kangaroo 2408.15542"
    stage = "after"
    order_sensitive = True
    adds_module = True

    def __init__(self, k: int, width: int, init: str = "image"):
        super().__init__(k)
        first, second = Linear(k * width, 2 * width), Linear(2 * width, width)
        self.mlp = nn.Sequential(first, nn.GELU(), second)
        if init not in ("image", "scratch"):
            raise ValueError(f"kangaroo: init must be image or scratch, got {init!r}")
        if init == "image":
            start_as_mean(first, second, k)

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        return projector(self.mlp(rearrange(x, "b g k h w d -> b g h w (k d)")))


@torch.no_grad()
def start_as_mean(first: nn.Linear, second: nn.Linear, k: int) -> None:
    both_signs = torch.cat([torch.eye(second.out_features), -torch.eye(second.out_features)])
    first.weight.copy_(inflate(both_signs, k))
    second.weight.copy_(both_signs.T)
    for linear in (first, second):
        linear.bias.zero_()
