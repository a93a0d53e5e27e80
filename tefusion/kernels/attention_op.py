"""The Triton kernels as an operator of PyTorch's: autograd, fake tensors, torch.compile and FLOP counts know it.

A custom_op and not a triton_op: `opcheck` passes, and the kernels may look at the values of `cu_seqlens`.
"""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tefusion.kernels import reference, trial
from tefusion.kernels.varlen import lengths


def attend(qkv: Tensor, cu_seqlens: Tensor | None, scale: float | None) -> Tensor:
    """For calls that the backend's `refusal` lets through. Autocast casts as it does for PyTorch's own attention."""
    device = qkv.device.type
    if torch.is_autocast_enabled(device) and qkv.dtype != torch.float64:
        qkv = qkv.to(torch.get_autocast_dtype(device))
    return _forward(qkv, cu_seqlens, qkv.shape[-1] ** -0.5 if scale is None else scale)[0]


def trusted(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    return trial.trusted(("attention", device, dtype, dim), lambda: right(device, dtype, dim))


def right(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Whether the kernels agree with the definition on frames of GLM-4V's length."""
    random = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(2, 257, 3, 2, dim, device=device, generator=random).to(dtype)
    return trial.agrees(lambda qkv: attend(qkv, None, None), reference.group_attention, qkv)


def kernels() -> ModuleType:
    from tefusion.kernels import triton_attention

    return triton_attention


def longest(qkv: Tensor, cu_seqlens: Tensor | None) -> int:
    return qkv.shape[1] if cu_seqlens is None else max(lengths(cu_seqlens, len(qkv)))


@torch.library.custom_op("tefusion::group_attention", mutates_args=())
def _forward(qkv: Tensor, cu_seqlens: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`out`, and the logarithm to base 2 of each softmax's denominator, which the backward pass reads."""
    return kernels().forward(qkv, cu_seqlens, scale, longest(qkv, cu_seqlens))


@torch.library.custom_op("tefusion::group_attention_backward", mutates_args=())
def _backward(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor | None, scale: float) -> Tensor:
    return kernels().backward(dout, qkv, out, lse, cu_seqlens, scale, longest(qkv, cu_seqlens))


@_forward.register_fake
def _(qkv: Tensor, cu_seqlens: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    *groups, length, _, heads, dim = qkv.shape
    precise = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty(*groups, length, heads, dim), qkv.new_empty(heads, math.prod(groups) * length, dtype=precise)


@_backward.register_fake
def _(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor | None, scale: float) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor | None, float], output: tuple[Tensor, Tensor]) -> None:
    qkv, cu_seqlens, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(qkv, *output, cu_seqlens)


def _gradient(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor, None, None]:
    qkv, out, lse, cu_seqlens = ctx.saved_tensors
    return _backward(dout, qkv, out, lse, cu_seqlens, ctx.scale), None, None


_forward.register_autograd(_gradient, setup_context=_save)


@register_flop_formula(torch.ops.tefusion.group_attention, get_raw=True)
def flops(qkv: Tensor, cu_seqlens: Tensor | None, scale: float, out_val: object = None) -> int:
    """Two matrix products, q k^T and weights v, as PyTorch counts its own attention."""
    heads, dim = qkv.shape[-2:]
    if cu_seqlens is None:
        pairs = math.prod(qkv.shape[:-3]) * qkv.shape[-4]
    else:
        pairs = sum(length**2 for length in lengths(cu_seqlens, len(qkv)))
    return 4 * pairs * heads * dim


@register_flop_formula(torch.ops.tefusion.group_attention_backward, get_raw=True)
def backward_flops(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor | None, scale: float, out_val: object = None
) -> int:
    """Five: the scores once more, and the gradients of weights, v, q and k."""
    return 5 * flops(qkv, cu_seqlens, scale) // 2
