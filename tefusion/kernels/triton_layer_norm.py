"""x + norm(y) in one kernel, and its backward in one: bound by memory, so every tensor is read and written once.

Forward reads x and y and writes the sum: three passes over memory where LayerNorm and an addition make five.
Backward gives dy and, for each program, its share of the gradients of weight and bias; PyTorch adds the shares, in a
fixed order, so two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SHARES = 256  # programs of a backward pass at most; more would make the sum over shares longer than the pass


@triton.jit
def forward_kernel(x, y, weight, bias, out, mean, rstd, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    precise = mean.dtype.element_ty
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(y + row * width + at, mask=inside, other=0.0).to(precise)
    centre = tl.sum(value, 0) / width
    value = tl.where(inside, value - centre, 0.0)
    scale = 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    normed = value * scale * tl.load(weight + at, mask=inside, other=0.0).to(precise)
    normed += tl.load(bias + at, mask=inside, other=0.0).to(precise)
    total = normed + tl.load(x + row * width + at, mask=inside, other=0.0).to(precise)
    tl.store(out + row * width + at, total.to(out.dtype.element_ty), mask=inside)
    tl.store(mean + row, centre)
    tl.store(rstd + row, scale)


@triton.jit
def backward_kernel(dout, y, weight, mean, rstd, dy, dweights, dbiases, rows, width, part, BLOCK: tl.constexpr):
    share = tl.program_id(0).to(tl.int64)
    precise = mean.dtype.element_ty
    at = tl.arange(0, BLOCK)
    inside = at < width
    gain = tl.load(weight + at, mask=inside, other=0.0).to(precise)
    dweight = tl.zeros([BLOCK], dtype=precise)
    dbias = tl.zeros([BLOCK], dtype=precise)
    for row in range(share * part, tl.minimum(share * part + part, rows)):
        scale = tl.load(rstd + row)
        slope = tl.load(dout + row * width + at, mask=inside, other=0.0).to(precise)
        value = tl.load(y + row * width + at, mask=inside, other=0.0).to(precise)
        normed = tl.where(inside, (value - tl.load(mean + row)) * scale, 0.0)
        dweight += slope * normed
        dbias += slope
        inner = slope * gain
        inner -= (tl.sum(inner, 0) + normed * tl.sum(inner * normed, 0)) / width
        tl.store(dy + row * width + at, (inner * scale).to(dy.dtype.element_ty), mask=inside)
    tl.store(dweights + share * width + at, dweight, mask=inside)
    tl.store(dbiases + share * width + at, dbias, mask=inside)


def forward(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, precise: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum in `dtype`; each row's mean and 1 / standard deviation in `precise`, in which all of it is computed."""
    x, y, weight, bias = (t.contiguous() for t in (x, y, weight, bias))
    width = y.shape[-1]
    rows = y.numel() // width
    out = torch.empty(y.shape, dtype=dtype, device=y.device)
    mean, rstd = (y.new_empty(y.shape[:-1], dtype=precise) for _ in range(2))
    if rows:
        forward_kernel[(rows,)](x, y, weight, bias, out, mean, rstd, width, eps, **launch(width))
    return out, mean, rstd


def backward(dout: Tensor, y: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dout, y, weight = (t.contiguous() for t in (dout, y, weight))
    width = y.shape[-1]
    rows = y.numel() // width
    dy = torch.empty_like(y)
    part = max(1, triton.cdiv(rows, SHARES))
    dweights, dbiases = (mean.new_empty(triton.cdiv(rows, part), width) for _ in range(2))
    if rows:
        grid, options = (len(dweights),), launch(width)
        backward_kernel[grid](dout, y, weight, mean, rstd, dy, dweights, dbiases, rows, width, part, **options)
    return dy, dweights.sum(0).to(weight.dtype), dbiases.sum(0).to(weight.dtype)


def launch(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}
