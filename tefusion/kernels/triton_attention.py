"""Attention inside groups in Triton, over a packed qkv and back into a packed dqkv: what is launched, and how.

Dense groups are ragged ones of equal length. Nothing here waits for the GPU.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench

from tefusion.kernels import configs, tiling
from tefusion.kernels.configs import Config
from tefusion.kernels.triton_backward import keys_kernel, queries_kernel
from tefusion.kernels.triton_forward import forward_kernel

KERNELS = {"forward": forward_kernel, "queries": queries_kernel, "keys": keys_kernel}
FARTHEST = ((1 << 31) - 1) // 128  # elements from row to row: a tile of 128 rows is addressed in 32 bits


def forward(qkv: Tensor, cu_seqlens: Tensor | None, scale: float, max_length: int) -> tuple[Tensor, Tensor]:
    """(out, lse) of a packed qkv: (groups, L, 3, H, D), or (total, 3, H, D) with int32 cu_seqlens (groups + 1).

    lse is for `backward`: (H, tokens), log2 of each query's sum over keys of exp(score), in fp32.
    """
    if scale < 0:
        raise ValueError(f"the Triton kernels' scale must not be negative, got {scale}")
    rows = readable(qkv.flatten(0, -4))
    out = rows.new_empty(len(rows), *rows.shape[2:])
    lse = row_sums(rows)
    launch("forward", rows, cu_seqlens, scale, max_length, {"out": out, "lse": lse})
    return out.view(*qkv.shape[:-3], *qkv.shape[-2:]), lse


def backward(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor | None, scale: float, max_length: int
) -> Tensor:
    """dqkv, contiguous. `dout` may have any strides; `out` and `lse` are the forward's."""
    rows = readable(qkv.flatten(0, -4))
    dqkv = torch.empty_like(rows, memory_format=torch.contiguous_format)
    slopes = {"lse": lse.contiguous(), "dout": readable(dout.flatten(0, -3)), "delta": row_sums(rows), "dqkv": dqkv}
    launch("queries", rows, cu_seqlens, scale, max_length, {"out": out.contiguous(), **slopes})
    launch("keys", rows, cu_seqlens, scale, max_length, slopes)
    return dqkv.view(qkv.shape)


def tune(
    qkv: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    max_length: int,
    timed: Callable[[Callable[[], None]], float] = do_bench,
) -> dict[str, Config]:
    """Times all candidates of the three kernels on this call; the fastest serve all calls like it from now on.

    `configs.export` keeps them. `timed` gives a launch's milliseconds.
    """
    rows = readable(qkv.flatten(0, -4))
    out, lse = forward(qkv, cu_seqlens, scale, max_length)
    dout = out.flatten(0, -3)
    given = {"out": dout, "lse": lse, "dout": dout, "delta": row_sums(rows), "dqkv": torch.empty_like(rows)}
    found = {}
    for name, kernel in KERNELS.items():
        tensors = {tensor: given[tensor] for tensor in given if tensor in kernel.arg_names}
        times = {}
        for config in configs.candidates(name):
            with suppress(OutOfResources):  # tiles that are too large for this chip
                times[config] = timed(partial(launch, name, rows, cu_seqlens, scale, max_length, tensors, config))
        key = configs.key(name, architecture(rows.device), qkv.shape[-1], rows.itemsize, max_length)
        found[key] = min(times, key=times.__getitem__)
    configs.TUNED.update(found)
    return found


def readable(rows: Tensor) -> Tensor:
    """The rows where they lie, or a copy where 16 bytes at once, or 32-bit places in a tile, would not reach them."""
    *strides, last = rows.stride()
    near = last == 1 and all(stride % 8 == 0 and stride <= FARTHEST for stride in strides)
    return rows if near else rows.contiguous()


def in_eights(rows: Tensor) -> list[int]:
    """Strides of what is `readable`, in units of eight elements."""
    return [stride // 8 for stride in rows.stride()[:-1]]


def row_sums(rows: Tensor) -> Tensor:
    """Room for a number a head and token."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return rows.new_empty(rows.shape[2], len(rows), dtype=dtype)


def launch(
    name: str,
    rows: Tensor,
    cu_seqlens: Tensor | None,
    scale: float,
    max_length: int,
    tensors: dict[str, Tensor],
    config: Config | None = None,
) -> None:
    """A program for each block (of keys for the kernel of that name, else of queries), head and group."""
    if not rows.numel():
        return
    total, _, heads, dim = rows.shape
    config = config or configs.pick(name, architecture(rows.device), dim, rows.itemsize, max_length)
    groups = total // max_length if cu_seqlens is None else len(cu_seqlens) - 1
    blocks = tiling.tiles(max_length, config.block_n if name == "keys" else config.block_m)
    strides = dict(zip(("token8", "part8", "head8"), in_eights(rows), strict=True))
    if "dout" in tensors:
        strides |= zip(("dout_token8", "dout_head8"), in_eights(tensors["dout"]), strict=True)
    with torch.cuda.device_of(rows):
        KERNELS[name][(blocks * heads * groups,)](
            qkv=rows,
            cu_seqlens=cu_seqlens,
            scale=scale,
            length=max_length,
            total=total,
            heads=heads,
            blocks=blocks,
            **tensors,
            **strides,
            **constants(config, dim, max_length, cu_seqlens is not None),
            **options(config),
        )


def constants(config: Config, dim: int, length: int, ragged: bool) -> dict[str, Any]:
    return {
        "DIM": dim,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "TAIL_M": tiling.tail(length, config.block_m),
        "TAIL_N": tiling.tail(length, config.block_n),
        "STAGES": config.stages,
        "RAGGED": ragged,
    }


def options(config: Config) -> dict[str, Any]:
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}


@cache
def architecture(device: torch.device) -> int:
    """90 for an H200. Triton's interpreter takes tensors of a CPU and plays one."""
    if device.type == "cpu":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
