"""te_interleave (after MotionBench, 2501.02955, section 4): te_fusion in every m-th block, or in the last r, only.

The question is where in depth fusion has to happen. Blocks are counted from the last one back, which always fuses:
every = 4 of a depth of 63 are blocks 3, 7, ... 63. The other blocks see each frame alone, at an image's cost.
"""

from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, run_blocks
from tefusion.compressors.te_fusion import TEFusion


class TEInterleave(TEFusion):
    source = "after MotionBench 2501.02955"

    def __init__(self, k: int, width: int, depth: int, every: int = 4, last: int = 0, position_std: float = 0.0):
        """Every `every`-th of the `last` blocks fuses; last = 0 counts all blocks, every = 1 takes each of them."""
        super().__init__(k, width, position_std=position_std)
        if every < 1:
            raise ValueError(f"te_interleave: every must be at least 1, got {every}")
        if not 0 <= last <= depth:
            raise ValueError(f"te_interleave: last must be 0 to {depth}, the tower's blocks, got {last}")
        self.every, self.last = every, last

    def run(
        self, x: Float[Tensor, "b s n d"], blocks: nn.ModuleList, frames: int, clip: Clip
    ) -> Float[Tensor, "b s n d"]:
        for place, block in enumerate(blocks):
            above = len(blocks) - 1 - place
            fuses = above % self.every == 0 and above < (self.last or len(blocks))
            x = run_blocks(x, nn.ModuleList([block]), frames=frames if fuses else 1)
        return x
