"""The fused LayerNorm + residual as an operator of PyTorch's, what it cannot serve, and when it is taken."""

from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tefusion.kernels import reference, trial
from tefusion.kernels.backends import interpreted
from tefusion.kernels.library_attention import HALF, too_old

WIDEST = 4096  # a row is held in registers: with 8192 the backward spills whatever the warps (`make aot`)


def fused(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """For calls that `refusal` lets through."""
    lifted = y.is_cuda and torch.is_autocast_enabled("cuda")  # PyTorch's LayerNorm gives fp32 then, and so does this
    normed = torch.promote_types(y.dtype, torch.float32) if lifted else y.dtype
    return _forward(x, y, weight, bias, eps, torch.promote_types(x.dtype, normed))[0]


def refusal(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Why the kernel cannot serve the call, or None."""
    if x.shape != y.shape or weight.shape != y.shape[-1:] or bias.shape != y.shape[-1:]:
        return f"the shapes do not fit: {', '.join(str(tuple(t.shape)) for t in (x, y, weight, bias))}"
    if not 0 < y.shape[-1] <= WIDEST:
        return f"it takes widths from 1 to {WIDEST}, got {y.shape[-1]}"
    for t in (x, y, weight, bias):
        if t.dtype not in (*HALF, torch.float32) and not (interpreted() and t.dtype == torch.float64):
            return f"it takes bfloat16, float16 and float32, got {t.dtype}"
    if find_spec("triton") is None:
        return "triton is not installed"
    return None if interpreted() else too_old(y)


def wins(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """On a GPU, outside of a compiler, which fuses the addition itself."""
    if not y.is_cuda or torch.compiler.is_compiling():
        return False
    return refusal(x, y, weight, bias) is None and trusted(y.device, y.dtype, y.shape[-1])


def trusted(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    return trial.trusted(("norm", device, dtype, width), lambda: right(device, dtype, width))


def right(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernels agree with the definition."""
    random = torch.Generator(device).manual_seed(0)
    rows = [torch.randn(n, width, device=device, generator=random).to(dtype) for n in (300, 300, 1, 1)]
    return trial.agrees(
        lambda x, y, weight, bias: fused(x, y, weight[0], bias[0], 1e-6),
        lambda x, y, weight, bias: reference.residual_layer_norm(x, y, weight[0], bias[0], 1e-6),
        *rows,
    )


def kernels() -> ModuleType:
    from tefusion.kernels import triton_layer_norm

    return triton_layer_norm


def precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@torch.library.custom_op("tefusion::residual_layer_norm", mutates_args=())
def _forward(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """x + norm(y) in `dtype`, and each row's mean and 1 / standard deviation, which the backward pass reads."""
    return kernels().forward(x, y, weight, bias, eps, dtype, precise(y.dtype))


@torch.library.custom_op("tefusion::residual_layer_norm_backward", mutates_args=())
def _backward(dout: Tensor, y: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return kernels().backward(dout, y, weight, mean, rstd)


@_forward.register_fake
def _(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (y.new_empty(y.shape[:-1], dtype=precise(y.dtype)) for _ in range(2))
    return y.new_empty(y.shape, dtype=dtype), mean, rstd


@_backward.register_fake
def _(dout: Tensor, y: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return y.new_empty(y.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, y, weight, bias, _, _ = inputs
    _, mean, rstd = output
    ctx.dtypes = x.dtype, bias.dtype
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(y, weight, mean, rstd)


def _gradient(ctx: Any, dout: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    dy, dweight, dbias = _backward(dout, *ctx.saved_tensors)
    return dout.to(ctx.dtypes[0]), dy, dweight, dbias.to(ctx.dtypes[1]), None, None


_forward.register_autograd(_gradient, setup_context=_save)
