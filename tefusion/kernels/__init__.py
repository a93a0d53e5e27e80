"""The same functions, faster: one public name an op, and the one place that picks who computes it."""

import os

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.kernels import cpu_linear, reference

ATTENTION_BACKENDS = ("auto", "sdpa", "xformers", "reference")
LINEAR_BACKENDS = ("auto", "torch", "onednn")


def group_attention(
    qkv: Float[Tensor, "rows length 3 heads dim"], *, scale: float | None = None, backend: str = "auto"
) -> Float[Tensor, "rows length heads dim"]:
    """Attention inside each row of a packed qkv. A group of k frames is a row, so groups cannot leak.

    `TEFUSION_ATTENTION` overrides "auto". A backend that is named and cannot serve the call raises; "auto" never
    leaves PyTorch's own attention.
    """
    backend = os.environ.get("TEFUSION_ATTENTION", "auto") if backend == "auto" else backend
    if backend not in ATTENTION_BACKENDS:
        raise ValueError(f"attention backend {backend!r} is unknown; known: {', '.join(ATTENTION_BACKENDS)}")
    return {"reference": reference.group_attention, "xformers": _xformers}.get(backend, _sdpa)(qkv, scale)


def _sdpa(qkv: Tensor, scale: float | None) -> Tensor:
    q, k, v = rearrange(qkv, "r l three h d -> three r h l d", three=3).unbind(0)
    return rearrange(F.scaled_dot_product_attention(q, k, v, scale=scale), "r h l d -> r l h d")


def _xformers(qkv: Tensor, scale: float | None) -> Tensor:
    if qkv.device.type != "cuda":
        raise ValueError(f"attention backend 'xformers' needs a CUDA tensor, got one on {qkv.device.type}")
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(*qkv.unbind(2), scale=scale)


def linear(
    x: Float[Tensor, "*lead inputs"], weight: Float[Tensor, "out inputs"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*lead out"]:
    """torch.nn.functional.linear: the same numbers up to rounding, on a CPU in fp32 up to twice as fast.

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


class Linear(nn.Linear):
    """nn.Linear, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
