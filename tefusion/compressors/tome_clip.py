"""tome_clip (VideoChat-Flash, 2501.00574; ToMe, 2210.09461): similar tokens of a group merge until m are left.

Bipartite soft matching on the mean of the heads, averages weighted by how many tokens each stands for, half the tokens
at most a round, between the projector's merge and its gated unit. Tokens lie in raster order with the frames of a place
side by side, and return to the order of their centroids after every round; the source leaves them in the order of
similarity. Copies of a frame find each other first, so a still video is an image.

Reversal of a group changes which tokens may meet, and so the output; the order itself is not told.
"""

from math import gcd

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor

HEAD = 64  # channels of a head, as far as they divide the width


class ToMeClip(Compressor):
    source = "VideoChat-Flash 2501.00574"
    stage = "after"

    def __init__(self, k: int):
        super().__init__(k)
        self.order_sensitive = k > 1

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        x = projector.get_submodule("merge")(x)
        batch, _, _, h, w, _ = x.shape
        x = merge_tokens(rearrange(x, "b g k h w e -> (b g) (h w k) e"), h * w)
        return projector.get_submodule("glu")(rearrange(x, "(b g) (h w) e -> b g h w e", b=batch, h=h))


def merge_tokens(x: Float[Tensor, "r n e"], left: int) -> Float[Tensor, "r m e"]:
    """Rounds of merging until `left` tokens are left, in the order of their centroids."""
    exact = torch.promote_types(x.dtype, torch.float32)  # a centroid may lie anywhere among thousands of places
    size = torch.ones_like(x[..., :1], dtype=exact)
    place = torch.arange(x.shape[1], device=x.device, dtype=exact)[None, :, None].expand_as(size)
    sums = torch.cat([x.to(exact), place, size], dim=-1)  # of what has merged: features, places, how many
    while sums.shape[1] > left:
        sums = merge_round(sums, min(sums.shape[1] - left, -(-sums.shape[1] // 2)))
    return (sums[..., :-2] / sums[..., -1:]).to(x.dtype)


def merge_round(sums: Float[Tensor, "r n s"], fewer: int) -> Float[Tensor, "r n2 s"]:
    """The `fewer` tokens at even places that are most like one at an odd place join it."""
    like = F.normalize(head_mean(sums[..., :-2].detach()), dim=-1)  # of sums as of means: the size cancels
    best, target = (like[:, ::2] @ like[:, 1::2].mT).max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    going, staying = order[:, :fewer], order[:, fewer:]
    even, odd = sums[:, ::2], sums[:, 1::2]
    joined = odd.scatter_add(1, rows(target.gather(1, going), odd), even.gather(1, rows(going, even)))
    sums = torch.cat([even.gather(1, rows(staying, even)), joined], dim=1)
    centroid = sums[..., -2] / sums[..., -1]
    return sums.gather(1, rows(centroid.argsort(dim=-1, stable=True), sums))


def head_mean(x: Float[Tensor, "r n e"]) -> Float[Tensor, "r n dim"]:
    return reduce(x, "r n (heads dim) -> r n dim", "mean", dim=gcd(x.shape[-1], HEAD))


def rows(index: Tensor, of: Tensor) -> Tensor:
    """An index over tokens as one over all their channels."""
    return index[..., None].expand(-1, -1, of.shape[-1])
