"""What the Triton kernels promise, in a few dense products: for tests of everything around them."""

import math
from types import SimpleNamespace

import torch
from einops import rearrange

from tefusion.kernels import attention_op


def scores_of(qkv, cu_seqlens, scale, max_length):
    """q, k, v as (heads, tokens, dim), and the scaled scores, -inf between groups."""
    lengths = [qkv.shape[1]] * len(qkv) if cu_seqlens is None else cu_seqlens.diff().tolist()
    assert max_length == max(lengths, default=qkv.shape[1])
    group = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    q, k, v = rearrange(qkv.double(), "... three h d -> three h (...) d")
    return q, k, v, (q @ k.mT * scale).masked_fill(group[:, None] != group, -math.inf)


def forward(qkv, cu_seqlens, scale, max_length):
    _, _, v, scores = scores_of(qkv, cu_seqlens, scale, max_length)
    out = rearrange(torch.softmax(scores, -1) @ v, "h n d -> n h d").reshape(qkv.select(-3, 0).shape)
    lse = torch.logsumexp(scores, -1) / math.log(2)
    return out.to(qkv.dtype).contiguous(), lse.to(torch.promote_types(qkv.dtype, torch.float32))


def backward(dout, qkv, out, lse, cu_seqlens, scale, max_length):
    q, k, v, scores = scores_of(qkv, cu_seqlens, scale, max_length)
    weights = torch.exp2(scores / math.log(2) - lse[:, :, None])
    dout, out = (rearrange(t.double(), "... h d -> h (...) d") for t in (dout, out))
    slope = weights * (dout @ v.mT - (dout * out).sum(-1, keepdim=True)) * scale
    dqkv = torch.stack([slope @ k, slope.mT @ q, weights.mT @ dout])
    return rearrange(dqkv, "three h n d -> n three h d").reshape(qkv.shape).to(qkv.dtype).contiguous()


def stand_in(monkeypatch):
    """The backend `triton` on a CPU, without Triton."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(attention_op, "kernels", lambda: SimpleNamespace(forward=forward, backward=backward))
