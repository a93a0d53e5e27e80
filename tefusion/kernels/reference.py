"""Every op in a few lines of PyTorch: the definition that a faster version must agree with."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int32
from torch import Tensor


def group_attention(
    qkv: Float[Tensor, "*groups length 3 heads dim"],
    cu_seqlens: Int32[Tensor, " bounds"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*groups length heads dim"]:
    """softmax(q k^T * scale) v inside each group; `scale` is dim ** -0.5 where it is None."""
    if cu_seqlens is not None:
        groups = qkv.split(cu_seqlens.diff().tolist())
        return torch.cat([group_attention(group, scale=scale) for group in groups])
    q, k, v = rearrange(qkv, "... l three h d -> three ... h l d", three=3).unbind(0)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.softmax(q @ k.mT * scale, dim=-1)
    return rearrange(weights @ v, "... h l d -> ... l h d")


def residual_layer_norm(
    x: Float[Tensor, "*rows width"],
    y: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float = 1e-5,
) -> Float[Tensor, "*rows width"]:
    """The post-norm block's x + norm(y): what a sub-layer gave is normed, then added to what it was given."""
    return x + F.layer_norm(y, weight.shape, weight, bias, eps)


def selective_scan(
    x: Float[Tensor, "r l h d"],
    dt: Float[Tensor, "r l h"],
    a: Float[Tensor, " h"],
    b: Float[Tensor, "r l s"],
    c: Float[Tensor, "r l s"],
) -> Float[Tensor, "r l h d"]:
    """A state that fades and gains: h <- exp(dt a) h + dt x b^T, y = h c, with `dt` >= 0 and `a` < 0."""
    state = x.new_zeros(len(x), *x.shape[2:], b.shape[-1])
    read = []
    for i in range(x.shape[1]):
        gained = torch.einsum("rhd,rs->rhds", x[:, i] * dt[:, i, :, None], b[:, i])
        state = state * (dt[:, i] * a).exp()[..., None, None] + gained
        read.append(torch.einsum("rhds,rs->rhd", state, c[:, i]))
    return torch.stack(read, dim=1)
