"""te_fusion (MotionBench, 2501.02955, section 4): k frames are one sequence for every self-attention of the encoder.

Read out by one convolution with kernel = stride = (k, 2, 2), which is the projector's merge over concatenated frames.
The class token stays one a frame. v1 adds a temporal position embedding of k rows, v2's prose does not mention one:
here it is learned, added to every token of a frame, and zero at the start, so that a still video is an image.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor, run_blocks


class TEFusion(Compressor):
    source = "MotionBench 2501.02955"
    stage = "inside"
    order_sensitive = True

    def __init__(self, k: int, width: int, position_std: float = 0.0):
        super().__init__(k)
        self.out_frames = k
        self.position = nn.Parameter(position_std * torch.randn(k, 1, width))

    def encode(self, x: Float[Tensor, "b s n d"], blocks: nn.ModuleList, clip: Clip) -> Float[Tensor, "b s n d"]:
        x = rearrange(x, "b (g k) n d -> b g k n d", k=self.k) + self.position
        return run_blocks(rearrange(x, "b g k n d -> b (g k) n d"), blocks, frames=self.k)

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        return projector(rearrange(x, "b g k h w d -> b g h w (k d)"))
