"""qwen2_vl (Qwen2-VL, 2409.12191, section 2.1): k frames are one image of 3k channels before the encoder sees them.

One linear map over the k frames of a patch is Qwen2-VL's 3D convolution with kernel = stride = (k, p, p).
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tefusion.compressors.base import Compressor


class Qwen2VL(Compressor):
    source = "Qwen2-VL 2409.12191"
    stage = "before"
    order_sensitive = True

    def __init__(self, k: int):
        super().__init__(k)
        self.in_frames = k

    def pixels(self, video: Float[Tensor, "b t c height width"]) -> Float[Tensor, "b s c2 height width"]:
        return rearrange(video, "b (g k) c height width -> b g (k c) height width", k=self.k)
