"""The selective scan in chunks (Mamba-2, 2405.21060, section 6): products of matrices inside a chunk of the sequence,
one state a chunk from there on. Or mamba_ssm's kernel of the same, on a GPU where that package is installed."""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

CHUNK = 64


def chunked(
    x: Float[Tensor, "r l h d"],
    dt: Float[Tensor, "r l h"],
    a: Float[Tensor, " h"],
    b: Float[Tensor, "r l s"],
    c: Float[Tensor, "r l s"],
    chunk: int = CHUNK,
) -> Float[Tensor, "r l h d"]:
    """`reference.selective_scan`, in float32 or better. What pads the last chunk lasts for no time."""
    exact = torch.promote_types(x.dtype, torch.float32)
    length, missing = x.shape[1], -x.shape[1] % chunk
    u, step, b, c = (
        rearrange(F.pad(t.to(exact), (0, 0) * (t.dim() - 2) + (0, missing)), "r (n q) ... -> r n q ...", q=chunk)
        for t in (x * dt[..., None], dt, b, c)
    )
    faded = (step * a.to(exact)).cumsum(dim=2)  # the log of what is left, at each place, of what the chunk began with
    within = decays(faded, faded, diagonal=0)
    y = einsum(c, b, within, u, "r n i s, r n j s, r n i j h, r n j h d -> r n i h d")
    last = faded[:, :, -1]
    gained = einsum(u, b, (last[:, :, None] - faded).exp(), "r n j h d, r n j s, r n j h -> r n h d s")
    ends = last.cumsum(dim=1)[:, None]  # one chunk that holds all chunks
    between = decays(ends - last[:, None], ends, diagonal=-1)[:, 0]
    carried = einsum(between, gained, "r n m h, r m h d s -> r n h d s")
    y = y + einsum(c, carried, faded.exp(), "r n i s, r n h d s, r n i h -> r n i h d")
    return rearrange(y, "r n q h d -> r (n q) h d")[:, :length].to(x.dtype)


def decays(to: Float[Tensor, "r n i h"], since: Float[Tensor, "r n j h"], diagonal: int) -> Float[Tensor, "r n i j h"]:
    """What is left at i of what was gained at j, none of what comes later."""
    gone = to[:, :, :, None] - since[:, :, None]
    past = torch.ones(gone.shape[2:4], dtype=torch.bool, device=to.device).tril(diagonal)
    return gone.masked_fill(~past[..., None], -torch.inf).exp()


def mamba(
    x: Float[Tensor, "r l h d"],
    dt: Float[Tensor, "r l h"],
    a: Float[Tensor, " h"],
    b: Float[Tensor, "r l s"],
    c: Float[Tensor, "r l s"],
) -> Float[Tensor, "r l h d"]:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(x, dt, a, b[:, :, None], c[:, :, None], CHUNK)


def refusal(x: Tensor) -> str:
    """Why mamba_ssm cannot serve a call; empty where it can."""
    if not x.is_cuda:
        return f"it runs on a GPU, and the tensors are on {x.device.type}"
    return "" if find_spec("mamba_ssm") else "mamba_ssm is not installed: pip install tefusion[ssm]"
