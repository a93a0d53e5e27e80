"""te_factor (TimeSformer, 2102.05095; STAVEQ2, 2510.26027): divided space-time attention, gated, zero at the start.

Each block sees its frame alone; behind it every token attends to the k tokens of its location, and a gate of one number
a channel, zero at first, lets the result in: the method starts as the image model. weights=own brings a norm, qkv and
output map a block (19 % FLOPs and 0.8 G parameters at GLM-4V's size); weights=shared uses the block's own attention a
second time, which a timm tower's closed blocks refuse. STAVEQ2 puts the branch before a block's MLP; behind the whole
block it fits any tower. Positions and read-out are te_fusion's. One frame alone has nothing to attend to.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.choices import nearest
from tefusion.compressors.attention import SelfAttention
from tefusion.compressors.base import Clip, run_blocks
from tefusion.compressors.te_fusion import TEFusion

WEIGHTS = ("own", "shared")


class TEFactor(TEFusion):
    source = "TimeSformer 2102.05095"

    def __init__(self, k: int, width: int, depth: int, heads: int, weights: str = "own", position_std: float = 0.0):
        super().__init__(k, width, position_std=position_std)
        if weights not in WEIGHTS:
            raise ValueError(f"te_factor: weights {weights!r} is unknown{nearest(weights, WEIGHTS)}")
        depth = depth if k > 1 else 0
        self.gates = nn.ParameterList(torch.zeros(width) for _ in range(depth))
        self.branches = nn.ModuleList()
        self.opens_blocks = weights == "shared"
        if weights == "own":
            self.branches.extend(nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads)) for _ in range(depth))

    def run(
        self, x: Float[Tensor, "b s n d"], blocks: nn.ModuleList, frames: int, clip: Clip
    ) -> Float[Tensor, "b s n d"]:
        b, _, n, _ = x.shape
        for place, block in enumerate(blocks):
            x = run_blocks(x, nn.ModuleList([block]))
            if self.k > 1:
                attend: Any = block.attend if self.opens_blocks else self.branches[place]
                seen = attend(rearrange(x, "b (g k) n d -> (b g n) k d", k=self.k))
                x = x + self.gates[place] * rearrange(seen, "(b g n) k d -> b (g k) n d", b=b, n=n)
        return x
