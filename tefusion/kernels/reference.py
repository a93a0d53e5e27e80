"""Every op in a few lines of PyTorch: the definition that a faster version must agree with."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def group_attention(
    qkv: Float[Tensor, "rows length 3 heads dim"], scale: float | None = None
) -> Float[Tensor, "rows length heads dim"]:
    """softmax(q k^T * scale) v inside each row; `scale` is dim ** -0.5 where it is None."""
    q, k, v = rearrange(qkv, "r l three h d -> three r h l d", three=3).unbind(0)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.softmax(q @ k.mT * scale, dim=-1)
    return rearrange(weights @ v, "r h l d -> r l h d")
