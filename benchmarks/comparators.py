"""Everybody who computes group attention, each pinned, and both ways to compute x + norm(y)."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from einops import rearrange
from torch import Tensor

from tefusion.kernels import group_attention, layer_norm_op, reference

ON_GPU = ("triton", "sdpa-cudnn", "sdpa-flash", "sdpa-efficient", "varlen", "xformers", "flex", "sdpa")
ON_CPU = ("sdpa", "sdpa-flash", "sdpa-math", "reference")
Attend = Callable[[Tensor], Tensor]


def attention(backend: str, cu_seqlens: Tensor | None = None) -> Attend:
    if backend == "flex":
        return flex
    return partial(group_attention, cu_seqlens=cu_seqlens, backend=backend)


@cache
def compiled_flex() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex(qkv: Tensor) -> Tensor:
    q, k, v = rearrange(qkv, "g l three h d -> three g h l d").unbind(0)
    return rearrange(compiled_flex()(q, k, v), "g h l d -> g l h d")


def norm(backend: str) -> Callable[..., Tensor]:
    return partial(layer_norm_op.fused if backend == "triton" else reference.residual_layer_norm, eps=1e-6)


@contextmanager
def chosen(**choice: str) -> Iterator[None]:
    """The encoder's switches, as TEFUSION_<NAME>."""
    names = {f"TEFUSION_{name.upper()}": value for name, value in choice.items()}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
