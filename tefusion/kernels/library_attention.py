"""Group attention by the libraries that have it: PyTorch's own, each of its kernels alone, its varlen, and xformers.

`run` of each takes a packed qkv, `cu_seqlens` where groups are ragged, and the scale; `refusal` says why it cannot.
"""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

from tefusion.kernels.varlen import dense_by_dense, lengths

HALF = (torch.float16, torch.bfloat16)


def not_on_cuda(qkv: Tensor) -> str | None:
    return None if qkv.is_cuda else f"it needs a CUDA tensor, got one on {qkv.device.type}"


def too_old(qkv: Tensor) -> str | None:
    """What no kernel written for Ampere serves."""
    if (reason := not_on_cuda(qkv)) or (capability := torch.cuda.get_device_capability(qkv.device)) >= (8, 0):
        return reason
    return f"it needs compute capability 8.0 or newer, got {capability[0]}.{capability[1]}"


def xformers_refusal(qkv: Tensor, ragged: bool) -> str | None:
    missing = None if find_spec("xformers") else "xformers is not installed"
    return missing or not_on_cuda(qkv)


def xformers(qkv: Tensor, cu_seqlens: Tensor | None, scale: float | None) -> Tensor:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    try:
        if cu_seqlens is None:
            return memory_efficient_attention(*qkv.unbind(2), scale=scale)
        bias = BlockDiagonalMask.from_seqlens(lengths(cu_seqlens, len(qkv)), device=qkv.device)
        return memory_efficient_attention(*qkv[None].unbind(2), attn_bias=bias, scale=scale)[0]
    except NotImplementedError as error:  # it knows only when asked which of its kernels serve a call
        said = " ".join(str(error).split())
        raise ValueError(f"attention backend 'xformers' cannot serve this call: {said}") from None


def varlen_refusal(qkv: Tensor, ragged: bool) -> str | None:
    if find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    if qkv.dtype not in HALF:
        return f"it takes bfloat16 and float16, got {qkv.dtype}"
    if qkv.shape[-1] % 8:
        return f"its head dims are multiples of 8, got {qkv.shape[-1]}"
    return too_old(qkv)


def varlen(qkv: Tensor, cu_seqlens: Tensor | None, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if cu_seqlens is None:
        groups, length = qkv.shape[:2]
        bounds = torch.arange(0, (groups + 1) * length, length, dtype=torch.int32, device=qkv.device)
        out = _varlen(varlen_attn, rearrange(qkv, "g l ... -> (g l) ..."), bounds, length, scale)
        return rearrange(out, "(g l) h d -> g l h d", l=length)
    return _varlen(varlen_attn, qkv, cu_seqlens, max(lengths(cu_seqlens, len(qkv))), scale)


def _varlen(attend: Callable, qkv: Tensor, bounds: Tensor, longest: int, scale: float | None) -> Tensor:
    return attend(*qkv.unbind(1), bounds, bounds, longest, longest, **({} if scale is None else {"scale": scale}))


def sdpa(qkv: Tensor, cu_seqlens: Tensor | None, scale: float | None) -> Tensor:
    """PyTorch's own on views of q, k and v: its kernels read strides."""
    if cu_seqlens is not None:
        return dense_by_dense(lambda rows: sdpa(rows, None, scale), qkv, cu_seqlens)
    q, k, v = rearrange(qkv, "r l three h d -> three r h l d", three=3).unbind(0)
    return rearrange(F.scaled_dot_product_attention(q, k, v, scale=scale), "r h l d -> r l h d")


def pinned(kernel: SDPBackend, qkv: Tensor, cu_seqlens: Tensor | None, scale: float | None) -> Tensor:
    with sdpa_kernel(kernel):
        return sdpa(qkv, cu_seqlens, scale)


def pinned_refusal(kernel: SDPBackend, asked: Callable, qkv: Tensor, ragged: bool) -> str | None:
    """What PyTorch itself says against this kernel."""
    if not qkv.is_cuda:  # on a CPU it has flash and math only, and flash takes all that math takes
        return None if kernel == SDPBackend.FLASH_ATTENTION and qkv.device.type == "cpu" else not_on_cuda(qkv)
    q, k, v = rearrange(qkv[None] if ragged else qkv, "r l three h d -> three r h l d").unbind(0)
    parameters: Any = cuda.SDPAParams(q, k, v, None, 0.0, False, False)  # type: ignore[call-arg, arg-type]
    with sdpa_kernel(kernel):
        if asked(parameters):
            return None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            asked(parameters, True)
    return "; ".join(str(w.message).split(" (Triggered internally")[0] for w in said) or "PyTorch does not say why"
