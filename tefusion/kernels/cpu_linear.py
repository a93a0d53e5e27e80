"""The linear map through oneDNN, in both directions.

The BLAS that PyTorch ships reaches 100 GFLOP/s in fp32 on one core of an AMD EPYC (AVX-512), oneDNN 200 to 240, for the
forward and both gradients alike, at every size measured from 197 x 768 x 768 to 17,000 x 768 x 64. On an Intel Xeon
(AVX-512) both reach 105 to 150, oneDNN 1.3 times as much at narrow maps and 0.94 times at 5,000 x 768 x 3,072.
"""

import platform
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import forward_ad

ENOUGH = 2**21  # multiply-adds; below, the call costs more (12 microseconds against 2) than the faster product saves
PLAIN = (Tensor, nn.Parameter)  # a subclass has its own idea of a linear map


def fastest(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """oneDNN where it can serve the call and is worth it, else PyTorch's own."""
    if torch.compiler.is_compiling() or x.numel() * len(weight) < ENOUGH or refusal(x, weight, bias):
        return F.linear(x, weight, bias)
    return onednn(x, weight, bias)


def refusal(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why oneDNN cannot serve the call, or None."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if torch.compiler.is_compiling() or intercepted():
        return "something records or transforms the call (compile, trace, functorch, a dispatch mode)"
    for t in tensors:
        if type(t) not in PLAIN or t.layout is not torch.strided:
            return f"it takes plain dense tensors, got a {type(t).__name__} with {t.layout}"
        if t.device.type != "cpu" or t.dtype is not torch.float32:
            return f"it takes torch.float32 on the CPU, got {t.dtype} on {t.device.type}"
    fits = x.dim() > 0 and weight.dim() == 2 and x.shape[-1] == weight.shape[1]
    if not fits or weight.numel() == 0 or (bias is not None and bias.shape != weight.shape[:1]):
        return f"the weight is empty or the shapes do not fit: {', '.join(str(tuple(t.shape)) for t in tensors)}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if not torch.backends.mkldnn.enabled or not works():
        return "this machine or this PyTorch has no oneDNN that agrees with torch.nn.functional.linear"
    return None


def intercepted() -> bool:
    """PyTorch's private names for this; where one is gone, the careful answer."""
    try:
        modes, transforms = torch._C._len_torch_dispatch_stack(), torch._C._are_functorch_transforms_active()
        return bool(modes or transforms or torch._C._get_tracing_state() or forward_ad._current_level >= 0)
    except AttributeError:
        return True


@cache
def works() -> bool:
    """Tried once, on both layouts that a weight has here: the op is private to PyTorch and may change."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    x, weight, bias = (torch.arange(n, dtype=torch.float32, device="cpu").sin() for n in (48, 80, 5))
    x, layouts = rearrange(x, "(r i) -> r i", i=16), ("(o i) -> o i", "(i o) -> o i")
    weights = [rearrange(weight, layout, i=16) for layout in layouts]
    try:
        return all(torch.allclose(product(x, w, bias), F.linear(x, w, bias), atol=1e-5) for w in weights)
    except (AttributeError, RuntimeError, TypeError):
        return False


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """For calls that `refusal` lets through."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return Linear.apply(x, weight, bias) if recorded else product(x, weight, bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not weight.is_contiguous() and not weight.mT.is_contiguous():  # oneDNN takes 600 times as long
        weight = weight.contiguous()
    bias = bias if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


class Linear(torch.autograd.Function):
    """An autograd.Function: a custom op costs 15 microseconds more forward and backward at the smallest sizes.

    The gradients are linear maps themselves, by the same switch, so that they can be differentiated again.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = rearrange(grad, "... o -> (...) o")
        return (
            fastest(grad, weight.mT) if for_x else None,
            outer(rows, rearrange(x, "... i -> (...) i")) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def outer(grad: Tensor, x: Tensor) -> Tensor:
    """grad^T x. oneDNN is up to 1.6 times as fast where the product has fewer rows than columns; with few rows to sum
    over, turning the product back costs more than that."""
    if grad.shape[1] > x.shape[1] and len(x) > 2 * x.shape[1]:
        return fastest(x.mT, grad.mT).mT.contiguous()
    return fastest(grad.mT, x.mT)
