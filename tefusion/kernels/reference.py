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
