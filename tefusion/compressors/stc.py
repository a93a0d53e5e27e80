"""stc (VideoLLaMA2, 2406.07476, section 2.2): RegStage, one convolution of kernel = stride = (k, 2, 2), RegStage.

The stages mix patches inside a frame, before and inside a group, after the convolution. It has no padding: the original
pads by one, and so gives the decoder 845 tokens for the 576 that it states. The convolution is the projector's merge in
the decoder's width, and the projector's gated unit takes the place of the original's MLP. Its activations keep it from
starting as the identity: a still video gives what one frame gives.
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor
from tefusion.compressors.cell_tokens import cells
from tefusion.compressors.regstage import RegStage
from tefusion.encoders.inflate import inflated_linear


class STC(Compressor):
    source = "VideoLLaMA2 2406.07476"
    stage = "after"
    order_sensitive = True
    adds_module = True
    starts_as_image = False
    owns_merge = True

    def __init__(self, k: int, width: int, embed_dim: int, layers: int = 4):
        super().__init__(k)
        self.before = RegStage(layers, width, embed_dim)
        self.sampler = inflated_linear(4 * embed_dim, k, embed_dim)
        self.after = RegStage(layers, embed_dim, embed_dim)

    def sample(self, x: Float[Tensor, "b g k h w e"]) -> Float[Tensor, "b g h2 w2 e"]:
        return self.sampler(rearrange(cells(x), "b g h w cell e -> b g h w (cell e)"))

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        batch, groups = x.shape[:2]
        x = self.before(rearrange(x, "b g k h w d -> (b g k) h w d"))
        x = F.silu(self.sample(rearrange(x, "(b g k) h w e -> b g k h w e", b=batch, g=groups)))
        x = self.after(rearrange(x, "b g h w e -> (b g) h w e"))
        return projector.get_submodule("glu")(rearrange(x, "(b g) h w e -> b g h w e", b=batch))
