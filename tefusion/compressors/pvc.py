"""pvc (PVC, 2412.09613): each frame tells the decoder only what the frames before it did not.

In the last blocks every token attends, causally, to its own location in all earlier frames of the clip; its norm is
scaled and shifted by the frame's time (AdaLN) and the result is gated, all zero at the start. The original keeps every
frame and compresses its space by a pixel shuffle; here a frame keeps the m / k places that its turn in the group owns,
p mod k from the last frame on, so that all methods cost the decoder the same: then a still video is an image. Where a
group has more frames than places, the earlier frames speak through the attention alone. It reaches the past.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from tefusion.compressors.attention import SelfAttention
from tefusion.compressors.base import Clip, Compressor, run_blocks
from tefusion.compressors.sincos import sincos
from tefusion.kernels import Linear


class TimedAttention(nn.Module):
    """Causal attention over time, with a norm and a gate that the seconds steer; gives nothing at the start."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, heads, causal=True)
        self.steer = Linear(width, 3 * width)
        nn.init.zeros_(self.steer.weight)
        nn.init.zeros_(self.steer.bias)

    def forward(self, x: Float[Tensor, "b t n d"], time: Float[Tensor, "b t d"]) -> Float[Tensor, "b t n d"]:
        scale, shift, gate = rearrange(self.steer(time), "b t (three d) -> three b t 1 d", three=3)
        y = rearrange(self.norm(x) * (1 + scale) + shift, "b t n d -> (b n) t d")
        return gate * rearrange(self.attention(y), "(b n) t d -> b t n d", n=x.shape[2])


class PVC(Compressor):
    source = "PVC 2412.09613"
    stage = "inside"
    reach = "past"
    order_sensitive = True
    adds_module = True

    def __init__(self, k: int, width: int, depth: int, heads: int, last: int = 0):
        """The `last` blocks see the past; 0 stands for half of them."""
        super().__init__(k)
        if not 0 <= last <= depth:
            raise ValueError(f"pvc: last must be 0 to {depth}, the tower's blocks, got {last}")
        self.timed = nn.ModuleList(TimedAttention(width, heads) for _ in range(last or (depth + 1) // 2))

    def encode(self, x: Float[Tensor, "b s n d"], blocks: nn.ModuleList, clip: Clip) -> Float[Tensor, "b s n d"]:
        time = sincos(clip.seconds - clip.seconds[:, :1], x.shape[-1]).to(x.dtype)
        alone = len(blocks) - len(self.timed)
        x = run_blocks(x, blocks[:alone])
        for block, timed in zip(blocks[alone:], self.timed, strict=True):
            x = x + timed(x, time)
            x = run_blocks(x, nn.ModuleList([block]))
        return x

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        y = projector(x)
        owner = owners(y.shape[3], y.shape[4], self.k, y.device)
        owner = repeat(owner, "h w -> b g 1 h w e", b=y.shape[0], g=y.shape[1], e=y.shape[5])
        return y.gather(2, owner).squeeze(2)


def owners(h: int, w: int, k: int, device: torch.device) -> Int[Tensor, "h w"]:
    """The frame of the group that tells of each place: the last one of the first, and so on in turn."""
    return rearrange(k - 1 - torch.arange(h * w, device=device) % k, "(h w) -> h w", h=h)
