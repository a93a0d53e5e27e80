"""Who computes group attention: what each backend cannot serve, and which one `auto` takes."""

import math
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.backends import cuda
from torch.nn.attention import SDPBackend

from tefusion.kernels import attention_op, reference
from tefusion.kernels import library_attention as library
from tefusion.kernels.library_attention import HALF, too_old
from tefusion.kernels.varlen import lengths


class Rule(NamedTuple):
    """Calls on a GPU that `auto` gives to `backend`: groups of up to `longest` tokens in these dtypes and dims."""

    backend: str
    ragged: bool
    dtypes: tuple[torch.dtype, ...]
    dims: tuple[int, ...]
    longest: float = math.inf


# The first that fits and can serve the call; where none does, and on any other device, PyTorch's own attention.
# Dense: at one frame's 257 tokens PyTorch's kernels execute 2.1 to 2.6 times the useful work at dims that they pad to
# 128, ours 1.2 times; an estimate, until `benchmarks/gpu.sh` has run. Longer groups are theirs until measured.
AUTO = (
    Rule("triton", ragged=False, dtypes=HALF, dims=(72, 80, 88, 96, 104, 112, 120), longest=320),
    Rule("varlen", ragged=True, dtypes=HALF, dims=tuple(range(8, 257, 8))),
)


def pick(qkv: Tensor, ragged: bool = False, backend: str = "auto") -> str:
    """The backend that a call runs on. Raises ValueError where one is named that is unknown or cannot serve it."""
    if backend == "auto":
        backend = os.environ.get("TEFUSION_ATTENTION", "auto")
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is unknown; known: {', '.join(('auto', *BACKENDS))}")
    if qkv.is_meta:  # shapes without numbers: counted, the same for every backend
        return "sdpa"
    if backend == "auto":
        return automatic(qkv, ragged)
    if reason := BACKENDS[backend].refusal(qkv, ragged):
        raise ValueError(f"attention backend {backend!r} cannot serve this call: {reason}")
    return backend


def automatic(qkv: Tensor, ragged: bool) -> str:
    if qkv.is_cuda and not torch.compiler.is_compiling():  # a compiler's trace leaves no room for a trial
        for rule in AUTO:
            if fits(rule, qkv, ragged) and serves(rule.backend, qkv, ragged):
                return rule.backend
    return "sdpa"


def fits(rule: Rule, qkv: Tensor, ragged: bool) -> bool:
    length = 0 if ragged else qkv.shape[1]  # of ragged groups it is known on the device only
    return ragged == rule.ragged and qkv.dtype in rule.dtypes and qkv.shape[-1] in rule.dims and length <= rule.longest


def serves(backend: str, qkv: Tensor, ragged: bool) -> bool:
    if BACKENDS[backend].refusal(qkv, ragged):
        return False
    return backend != "triton" or attention_op.trusted(qkv.device, qkv.dtype, qkv.shape[-1])


class Backend(NamedTuple):
    refusal: Callable[[Tensor, bool], str | None]  # why it cannot serve a call, or None
    run: Callable[[Tensor, Tensor | None, float | None], Tensor]


def nothing(qkv: Tensor, ragged: bool) -> None:
    """Refuses no call."""


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_refusal(qkv: Tensor, ragged: bool) -> str | None:
    if qkv.dtype not in (*HALF, torch.float32) and not (interpreted() and qkv.dtype == torch.float64):
        return f"it takes bfloat16, float16 and float32, got {qkv.dtype}"
    if qkv.shape[-1] % 8 or not 16 <= qkv.shape[-1] <= 128:
        return f"its head dims are the multiples of 8 from 16 to 128, got {qkv.shape[-1]}"
    if find_spec("triton") is None:
        return "triton is not installed"
    return None if interpreted() else too_old(qkv)


def by_definition(qkv: Tensor, cu_seqlens: Tensor | None, scale: float | None) -> Tensor:
    if cu_seqlens is not None:
        lengths(cu_seqlens, len(qkv))  # refuses bounds that are wrong
    return reference.group_attention(qkv, cu_seqlens, scale)


def pin(kernel: SDPBackend, asked: Callable) -> Backend:
    return Backend(partial(library.pinned_refusal, kernel, asked), partial(library.pinned, kernel))


BACKENDS = {
    "triton": Backend(triton_refusal, attention_op.attend),
    "xformers": Backend(library.xformers_refusal, library.xformers),
    "sdpa": Backend(nothing, library.sdpa),
    "sdpa-flash": pin(SDPBackend.FLASH_ATTENTION, cuda.can_use_flash_attention),
    "sdpa-cudnn": pin(SDPBackend.CUDNN_ATTENTION, cuda.can_use_cudnn_attention),
    "sdpa-efficient": pin(SDPBackend.EFFICIENT_ATTENTION, cuda.can_use_efficient_attention),
    "sdpa-math": Backend(nothing, partial(library.pinned, SDPBackend.MATH)),
    "varlen": Backend(library.varlen_refusal, library.varlen),
    "reference": Backend(nothing, by_definition),
}
