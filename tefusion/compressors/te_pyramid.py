"""te_pyramid (after Token Merging for video, 2210.09461, and Swin's merging, 2103.14030): frames merge half-way.

At chosen depths every two neighbouring frames of a group become one by Linear(2d -> d), token by token, so that later
blocks see ever fewer frames: the encoder is the bottleneck, and this makes it cheaper than the image's. k is a power of
2; merges after a quarter and a half of the depth cost 0.5 times the plain encoder at k = 4. The maps start as the mean
of the two frames, so that a still video is an image; between merges each frame is seen alone.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import LARGEST_GROUP, Clip, Compressor, run_blocks
from tefusion.encoders.inflate import inflate
from tefusion.kernels import Linear


class TEPyramid(Compressor):
    source = "after Swin 2103.14030"
    stage = "inside"
    order_sensitive = True
    valid_k = tuple(2**i for i in range(LARGEST_GROUP.bit_length()))

    def __init__(self, k: int, width: int, depth: int, depths: str = ""):
        """`depths` holds a share of the depth for each merge, as in 0.25+0.5 for k = 4; without it merges lie evenly
        in the first half."""
        super().__init__(k)
        merges = k.bit_length() - 1
        shares = [(i + 1) / (2 * merges) for i in range(merges)] if depths == "" else read_shares(depths, merges)
        self.after = [math.floor(share * depth + 0.5) for share in shares]
        self.merges = nn.ModuleList(mean_of_two(width) for _ in range(merges))

    def encode(self, x: Float[Tensor, "b s n d"], blocks: nn.ModuleList, clip: Clip) -> Float[Tensor, "b s2 n d"]:
        done = 0
        for after, merge in zip(self.after, self.merges, strict=True):
            x = run_blocks(x, blocks[done:after])
            x = merge(rearrange(x, "b (s two) n d -> b s n (two d)", two=2))
            done = after
        return run_blocks(x, blocks[done:])


def read_shares(text: str, merges: int) -> list[float]:
    try:
        shares = [float(part) for part in text.split("+")]
    except ValueError:
        shares = []
    if len(shares) != merges or shares != sorted(shares) or not all(0 <= share <= 1 for share in shares):
        raise ValueError(
            f"te_pyramid: depths must be {merges} ascending shares of the depth, one a merge, such as "
            f"{'+'.join(f'{(i + 1) / (2 * merges):g}' for i in range(merges)) or 'none'}, got {text!r}"
        )
    return shares


@torch.no_grad()
def mean_of_two(width: int) -> Linear:
    merge = Linear(2 * width, width)
    merge.weight.copy_(inflate(torch.eye(width), 2))
    merge.bias.zero_()
    return merge
