"""How a group of k frames is read out behind the encoder, where they have already met.

A read-out acts at two places: `join` may add tokens before the first block and `leave` drops frames behind the last;
`forward` makes one frame of those that are left. All of them give an image's features for still frames at the start.
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn


class Concat(nn.Module):
    """k frames side by side on the channels, for a projector widened to k frames (MotionBench's (k, 2, 2) map)."""

    def __init__(self, k: int, width: int):
        super().__init__()
        self.out_frames = k  # how many frames share the projector's input
        self.added = 0  # frames in a group beside its own, inside the encoder

    def join(self, x: Float[Tensor, "b g k n d"]) -> Float[Tensor, "b g k2 n d"]:
        return x

    def leave(self, x: Float[Tensor, "b g k2 n d"]) -> Float[Tensor, "b g j n d"]:
        return x

    def forward(self, x: Float[Tensor, "b g j h w d"]) -> Float[Tensor, "b g h w c"]:
        return rearrange(x, "b g k h w d -> b g h w (k d)")


class Mean(Concat):
    """The mean over k frames, as Kimi K2.5's MoonViT3d reads out."""

    def __init__(self, k: int, width: int):
        super().__init__(k, width)
        self.out_frames = 1

    def forward(self, x: Float[Tensor, "b g j h w d"]) -> Float[Tensor, "b g h w d"]:
        return reduce(x, "b g k h w d -> b g h w d", "mean")


class Last(Mean):
    """The last frame, which has seen the others."""

    def forward(self, x: Float[Tensor, "b g j h w d"]) -> Float[Tensor, "b g h w d"]:
        return x[:, :, -1]


class Attend(Mean):
    """A weighted mean: softmax over the k tokens of a location, of their product with a learned query that starts at
    zero, where it is the mean."""

    def __init__(self, k: int, width: int):
        super().__init__(k, width)
        self.query = nn.Parameter(torch.zeros(width)) if k > 1 else None  # of one token the weight is always 1

    def forward(self, x: Float[Tensor, "b g j h w d"]) -> Float[Tensor, "b g h w d"]:
        if self.query is None:
            return x[:, :, 0]
        scores = x @ self.query * len(self.query) ** -0.5
        return torch.einsum("bgkhw,bgkhwd->bghwd", scores.softmax(2), x)


class Registers(Mean):
    """A frame of registers joins the group, attends with it in every block and is all that is read out (registers:
    Darcet et al., 2309.16588). It starts as the mean of the frames' tokens plus a learned offset, zero at first; the
    encoder costs (k + 1) / k more. One frame alone needs none."""

    def __init__(self, k: int, width: int):
        super().__init__(k, width)
        self.added = int(k > 1)
        self.offset = nn.Parameter(torch.zeros(width)) if k > 1 else None

    def join(self, x: Float[Tensor, "b g k n d"]) -> Float[Tensor, "b g k2 n d"]:
        if self.offset is None:
            return x
        return torch.cat([x, x.mean(2, keepdim=True) + self.offset], dim=2)

    def leave(self, x: Float[Tensor, "b g k2 n d"]) -> Float[Tensor, "b g j n d"]:
        return x[:, :, -1:]


READOUTS: dict[str, type[Concat]] = {
    "concat": Concat,
    "mean": Mean,
    "last": Last,
    "attention": Attend,
    "registers": Registers,
}
