"""RegStage (RegNet, 2003.13678, section 3; timm's): bottlenecks of 1x1, depthwise 3x3 and 1x1 maps on a grid of tokens.

Channels last: a 1x1 convolution is a linear map, and a norm over channels is a plain LayerNorm. The blocks are those
that VideoLLaMA2 takes: as wide as their output, squeeze-and-excitation of a quarter of their input, SiLU.
"""

import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.kernels import Linear

EPS = 1e-5  # of timm's LayerNormAct2d


class Excitation(nn.Module):
    """Each channel weighed by what the whole grid holds."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Float[Tensor, "r h w c"]) -> Float[Tensor, "r h w c"]:
        mean = reduce(x, "r h w c -> r 1 1 c", "mean")
        return x * self.fc2(F.silu(self.fc1(mean))).sigmoid()


class Bottleneck(nn.Module):
    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.conv1, self.norm1 = Linear(width_in, width, bias=False), nn.LayerNorm(width, eps=EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.se = Excitation(width, round(width_in / 4))
        self.conv3, self.norm3 = Linear(width, width, bias=False), nn.LayerNorm(width, eps=EPS)
        self.shortcut: nn.Module = nn.Identity()
        if width_in != width:
            self.shortcut = nn.Sequential(Linear(width_in, width, bias=False), nn.LayerNorm(width, eps=EPS))

    def forward(self, x: Float[Tensor, "r h w c"]) -> Float[Tensor, "r h w c2"]:
        y = F.silu(self.norm1(self.conv1(x)))
        y = rearrange(self.conv2(rearrange(y, "r h w c -> r c h w")), "r c h w -> r h w c")
        y = self.se(F.silu(self.norm2(y)))
        return F.silu(self.norm3(self.conv3(y)) + self.shortcut(x))


class RegStage(nn.Sequential):
    """`depth` bottlenecks, of which the first changes the width."""

    def __init__(self, depth: int, width_in: int, width: int):
        super().__init__(*(Bottleneck(width if i else width_in, width) for i in range(depth)))
