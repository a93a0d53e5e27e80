"""kangaroo (as re-implemented in MotionBench, 2501.02955; Kangaroo, 2408.15542): concatenate k frames, MLP, project.

The paper leaves the MLP's size open. Two layers with 2 * width hidden units can say the mean of the frames exactly,
since gelu(x) - gelu(-x) = x: that is the initial value, so that a still video is an image.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Compressor
from tefusion.encoders.inflate import inflate


class Kangaroo(Compressor):
    source = "Kangaroo 2408.15542"
    stage = "after"
    order_sensitive = True
    adds_module = True

    def __init__(self, k: int, width: int, init: str = "image"):
        super().__init__(k)
        self.mlp = nn.Sequential(nn.Linear(k * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        if init not in ("image", "scratch"):
            raise ValueError(f"kangaroo: init must be image or scratch, got {init!r}")
        if init == "image":
            self.start_as_mean(width)

    @torch.no_grad()
    def start_as_mean(self, width: int) -> None:
        both_signs = torch.cat([torch.eye(width), -torch.eye(width)])
        self.mlp[0].weight.copy_(inflate(both_signs, self.k))
        self.mlp[2].weight.copy_(both_signs.T)
        self.mlp[0].bias.zero_()
        self.mlp[2].bias.zero_()

    def project(self, x: Float[Tensor, "b g j h w d"], projector: nn.Module) -> Float[Tensor, "b g h2 w2 e"]:
        return projector(self.mlp(rearrange(x, "b g k h w d -> b g h w (k d)")))
