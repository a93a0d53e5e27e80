"""The same functions, faster: one public name an op, and the one place that picks who computes it."""

import os

import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor, nn

from tefusion.kernels import backends, cpu_linear, layer_norm_op, reference, scan
from tefusion.kernels.rotary import rotate
from tefusion.kernels.varlen import check_packed

ATTENTION_BACKENDS = ("auto", *backends.BACKENDS)
LINEAR_BACKENDS = ("auto", "torch", "onednn")
NORM_BACKENDS = ("auto", "torch", "triton")
SCAN_BACKENDS = ("auto", "torch", "mamba_ssm")


__all__ = [
    "ATTENTION_BACKENDS",
    "LINEAR_BACKENDS",
    "NORM_BACKENDS",
    "SCAN_BACKENDS",
    "Linear",
    "ResidualLayerNorm",
    "group_attention",
    "linear",
    "residual_layer_norm",
    "rotate",
    "selective_scan",
]


def group_attention(
    qkv: Float[Tensor, "*groups length 3 heads dim"],
    *,
    cu_seqlens: Int32[Tensor, " bounds"] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "*groups length heads dim"]:
    """Attention inside each group of a packed qkv: a group of k frames is a row, so groups cannot leak.

    `cu_seqlens` holds the bounds of groups of unequal length, [0, ..., total], in a qkv (total, 3, heads, dim).
    `TEFUSION_ATTENTION` overrides "auto". A backend that is named and cannot serve the call raises ValueError;
    `backends.AUTO` says what "auto" takes.
    """
    check_packed(qkv, cu_seqlens)
    name = backends.pick(qkv, cu_seqlens is not None, backend)
    return backends.BACKENDS[name].run(qkv, cu_seqlens, scale)


def residual_layer_norm(
    x: Float[Tensor, "*rows width"],
    y: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float = 1e-5,
) -> Float[Tensor, "*rows width"]:
    """x + norm(y), the post-norm block's, in one kernel where that wins: on a GPU.

    `TEFUSION_NORM` overrides the choice; "triton" raises ValueError where it cannot serve the call.
    """
    backend = os.environ.get("TEFUSION_NORM", "auto")
    if backend not in NORM_BACKENDS:
        raise ValueError(f"norm backend {backend!r} is unknown; known: {', '.join(NORM_BACKENDS)}")
    if backend == "triton" and not y.is_meta and (reason := layer_norm_op.refusal(x, y, weight, bias)):
        raise ValueError(f"norm backend 'triton' cannot serve this call: {reason}")
    if not y.is_meta and (backend == "triton" or (backend == "auto" and layer_norm_op.wins(x, y, weight, bias))):
        return layer_norm_op.fused(x, y, weight, bias, eps)
    return reference.residual_layer_norm(x, y, weight, bias, eps)


class ResidualLayerNorm(nn.LayerNorm):
    """nn.LayerNorm of `y`, added to `x`."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return residual_layer_norm(x, y, self.weight, self.bias, self.eps)


def linear(
    x: Float[Tensor, "*lead inputs"], weight: Float[Tensor, "out inputs"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*lead out"]:
    """torch.nn.functional.linear: the same numbers up to rounding; in fp32 on some CPUs up to twice as fast.

    `TEFUSION_LINEAR` overrides the choice. "onednn" raises ValueError where it cannot serve the call; its gradients are
    still computed by whichever is faster.
    """
    backend = os.environ.get("TEFUSION_LINEAR", "auto")
    if backend not in LINEAR_BACKENDS:
        raise ValueError(f"linear backend {backend!r} is unknown; known: {', '.join(LINEAR_BACKENDS)}")
    if backend == "torch":
        return F.linear(x, weight, bias)
    return (_onednn if backend == "onednn" else cpu_linear.fastest)(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if reason := cpu_linear.refusal(x, weight, bias):
        raise ValueError(f"linear backend 'onednn' cannot serve this call: {reason}")
    return cpu_linear.onednn(x, weight, bias)


def selective_scan(
    x: Float[Tensor, "r l h d"],
    dt: Float[Tensor, "r l h"],
    a: Float[Tensor, " h"],
    b: Float[Tensor, "r l s"],
    c: Float[Tensor, "r l s"],
) -> Float[Tensor, "r l h d"]:
    """Mamba-2's recurrence over l places: h <- exp(dt a) h + dt x b^T, y = h c.

    In chunks of plain PyTorch, or by mamba_ssm where it is installed and the tensors are on a GPU. `TEFUSION_SCAN`
    overrides the choice; "mamba_ssm" raises ValueError where it cannot serve the call.
    """
    backend = os.environ.get("TEFUSION_SCAN", "auto")
    if backend not in SCAN_BACKENDS:
        raise ValueError(f"scan backend {backend!r} is unknown; known: {', '.join(SCAN_BACKENDS)}")
    if backend == "mamba_ssm" and (reason := scan.refusal(x)):
        raise ValueError(f"scan backend 'mamba_ssm' cannot serve this call: {reason}")
    named = backend == "mamba_ssm" or (backend == "auto" and x.is_cuda and not scan.refusal(x))
    return (scan.mamba if named else scan.chunked)(x, dt, a, b, c)


class Linear(nn.Linear):
    """nn.Linear, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
