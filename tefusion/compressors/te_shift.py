"""te_shift (Swin, 2103.14030, section 3.2, with frames for pixels): odd blocks move te_fusion's group border by k/2.

What one block keeps within a group the next carries over its border, at no extra cost: with two blocks a frame reaches
the neighbouring groups, with each further pair one more, so that a deep tower sees the clip. The half groups at both
ends stay alone instead of being wrapped around, since the end of a clip does not come before its beginning. The
read-out is on the unshifted groups. Still frames give an image whatever the border is.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, run_blocks
from tefusion.compressors.te_fusion import TEFusion


class TEShift(TEFusion):
    source = "after Swin 2103.14030"
    reach = "clip"

    def __init__(self, k: int, width: int, position_std: float = 0.0):
        super().__init__(k, width, position_std=position_std)

    def run(
        self, x: Float[Tensor, "b s n d"], blocks: nn.ModuleList, frames: int, clip: Clip
    ) -> Float[Tensor, "b s n d"]:
        half = self.k // 2
        parts = [(half, half), (x.shape[1] - self.k, self.k), (self.k - half, self.k - half)]  # frames, and of a group
        for place, block in enumerate(blocks):
            one = nn.ModuleList([block])
            if place % 2 == 0 or not half:
                x = run_blocks(x, one, frames=self.k)
                continue
            pieces = x.split([frames for frames, _ in parts], dim=1)
            groups = [group for _, group in parts]
            x = torch.cat([run_blocks(p, one, frames=j) for p, j in zip(pieces, groups, strict=True) if p.shape[1]], 1)
        return x
