"""lower_resolution, a control: all k frames, each at a size of m / k tokens (as in MotionBench, 2501.02955, section 4).

Width and height are halved in turn, width first; k is a power of two. It is `none` at that size, and a sweep trains it
as that. Where the halves of a merged grid are no whole numbers they are rounded up, and m of the tokens are kept,
evenly spaced; so are those of k frames of one token each where k is larger than m. A still video is no image: each
frame shows less than the image does.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import LARGEST_GROUP, Clip, Compressor
from tefusion.resize import resize_pixels


class LowerResolution(Compressor):
    source = "MotionBench 2501.02955"
    stage = "before"
    control = True
    order_sensitive = True
    valid_k = tuple(2**i for i in range(LARGEST_GROUP.bit_length()))

    def __init__(self, k: int, grid: tuple[int, int]):
        super().__init__(k)
        self.grid, self.merged = grid, (grid[0] // 2, grid[1] // 2)
        halvings = k.bit_length() - 1
        self.shown = (shared(grid[0], halvings // 2), shared(grid[1], halvings - halvings // 2))
        if k > 1:
            self.never_still = "each frame shows less than the image does"

    def pixels(self, video: Float[Tensor, "b t c height width"]) -> Float[Tensor, "b t c height2 width2"]:
        if self.shown == self.grid:
            return video
        height, width = (
            pixels * shown // patches
            for pixels, shown, patches in zip(video.shape[-2:], self.shown, self.grid, strict=True)
        )
        small = resize_pixels(rearrange(video, "b t c height width -> (b t) c height width"), (height, width))
        return rearrange(small, "(b t) c height width -> b t c height width", b=len(video))

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        if self.k == 1:
            return super().project(x, projector, clip)
        if tuple(x.shape[3:5]) != self.shown:
            made, shown, here = ("x".join(map(str, grid)) for grid in (self.grid, self.shown, x.shape[3:5]))
            raise ValueError(f"lower_resolution was made to show {made} patches as {shown}, these frames have {here}")
        y = rearrange(projector(x), "b g k h w e -> b g (k h w) e")
        places = torch.arange(left := self.merged[0] * self.merged[1], device=y.device) * y.shape[2] // left
        return rearrange(y[:, :, places], "b g (h w) e -> b g h w e", h=self.merged[0])


def shared(patches: int, halvings: int) -> int:
    """A frame's patches down or across after some halvings of the tokens that they merge to."""
    return 2 * -(-(patches // 2) // 2**halvings) if halvings else patches
