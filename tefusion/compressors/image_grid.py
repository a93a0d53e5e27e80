"""image_grid (Kim et al., 2403.18406): k frames side by side are one image, resized to one frame.

1x2, 2x2, 2x4 and 4x4 frames make the grid, in reading order, as wide as high but for a factor of two. It costs the
encoder 1/k and adds no parameter: what a pre-encoder method can do without learning. A still video cannot be its image:
the tower sees k small copies of it.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tefusion.compressors.base import Compressor
from tefusion.resize import resize_pixels

ROWS = {1: 1, 2: 1, 4: 2, 8: 2, 16: 4}  # of the grid, for each k


class ImageGrid(Compressor):
    source = "Kim et al. 2403.18406"
    stage = "before"
    order_sensitive = True
    valid_k = tuple(ROWS)

    def __init__(self, k: int):
        super().__init__(k)
        if k > 1:
            self.never_still = "the tower sees k small copies of the frame"

    def pixels(self, video: Float[Tensor, "b t c height width"]) -> Float[Tensor, "b s c2 height width"]:
        if self.k == 1:
            return video
        grid = rearrange(
            video, "b (g r q) c height width -> (b g) c (r height) (q width)", r=ROWS[self.k], q=self.k // ROWS[self.k]
        )
        small = resize_pixels(grid, (video.shape[-2], video.shape[-1]))
        return rearrange(small, "(b g) c height width -> b g c height width", b=len(video))
