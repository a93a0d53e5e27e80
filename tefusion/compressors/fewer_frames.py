"""fewer_frames, a control: one frame of k, the rest never seen (MotionBench, 2501.02955, whose baseline it is).

The frame in the middle of a group, index k // 2: of a clip of as many frames as are sampled at their `centres`, these
are the centres of the groups. It is `none` with n_input / k frames, and a sweep trains it as that.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tefusion.compressors.base import Compressor


class FewerFrames(Compressor):
    source = "MotionBench 2501.02955"
    stage = "before"
    control = True
    drops_frames = True

    def __init__(self, k: int):
        super().__init__(k)
        self.order_sensitive = k % 2 == 0  # an odd group's middle stays where it is when the group is reversed

    def pixels(self, video: Float[Tensor, "b t c height width"]) -> Float[Tensor, "b s c height width"]:
        return rearrange(video, "b (g k) c height width -> b g k c height width", k=self.k)[:, :, self.k // 2]
