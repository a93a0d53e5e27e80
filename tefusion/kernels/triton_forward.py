"""Forward of attention inside groups: FlashAttention-2 (2307.08691) with a narrow last tile of queries and of keys.

Scores are in log2 (exp2 is what the hardware has), and the scale is folded into the exponent. Only the last tile of
keys is masked.
"""

import triton
import triton.language as tl

from tefusion.kernels.triton_tiles import (
    COUNTS,
    LOG2_E,
    accumulate,
    chunks,
    contract,
    load,
    narrow_limit,
    one_head,
    one_head_packed,
    padded,
    place,
    scaled,
    single,
    store,
    zeros,
)


@triton.jit
def _attend(
    q,
    k,
    v,
    key,
    length,
    log2_scale,
    state,
    KEYS: tl.constexpr,
    WIDTHS: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds a tile of keys to each query's maximum, its mass, and its sum of values weighted by mass."""
    top, mass, sums = state
    s = contract(q, load(k, key, length, KEYS, WIDTHS, DIM, MASKED), top.dtype)
    if MASKED:
        s = tl.where((key + tl.arange(0, KEYS) < length)[None, :], s, float("-inf"))
    higher = tl.maximum(top, tl.max(s, 1) * log2_scale)
    p = tl.exp2(s * log2_scale - higher[:, None])
    decay = tl.exp2(top - higher)
    values = load(v, key, length, KEYS, padded(WIDTHS), DIM, MASKED)
    return higher, mass * decay + tl.sum(p, 1), accumulate(scaled(sums, decay[:, None]), p, values, top.dtype)


@triton.jit
def _tile(
    matrices,
    lse,
    query,
    length,
    scale,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
    WIDTHS: tl.constexpr,
    DIM: tl.constexpr,
    STAGES: tl.constexpr,
):
    q_matrix, k, v, out = matrices
    ACC: tl.constexpr = lse.dtype.element_ty
    log2_scale = scale * LOG2_E
    q = load(q_matrix, query, length, ROWS, WIDTHS, DIM, True)
    state = (tl.full((ROWS,), float("-inf"), ACC), tl.zeros((ROWS,), ACC), zeros(ROWS, padded(WIDTHS), ACC))
    full = length // BLOCK * BLOCK
    for key in tl.range(0, full, BLOCK, num_stages=STAGES):
        state = _attend(q, k, v, key, length, log2_scale, state, BLOCK, WIDTHS, DIM, False)
    for key in tl.range(full, length, TAIL, num_stages=1):
        state = _attend(q, k, v, key, length, log2_scale, state, TAIL, WIDTHS, DIM, True)
    top, mass, sums = state
    store(out, query, length, scaled(sums, 1 / mass[:, None]), padded(WIDTHS), DIM)
    rows = query + tl.arange(0, ROWS)
    tl.store(lse + rows, top + tl.log2(mass), mask=rows < length)


@triton.jit(do_not_specialize=COUNTS)
def forward_kernel(
    qkv,
    cu_seqlens,
    out,
    lse,
    scale,
    length,
    total,
    heads,
    blocks,
    token8,
    part8,
    head8,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_M: tl.constexpr,
    TAIL_N: tl.constexpr,
    STAGES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    start, length, head, block = place(cu_seqlens, length, heads, blocks, RAGGED)
    q, k, v = one_head_packed(qkv, start, head, token8, part8, head8)
    unit = tl.full((), DIM // 8, tl.int32)
    matrices = (q, k, v, one_head(out, start, head, heads * unit, unit))
    lse += head.to(tl.int64) * total + start
    query = block * BLOCK_M
    left = length - query
    if left > narrow_limit(BLOCK_M, TAIL_M):
        _tile(matrices, lse, query, length, scale, BLOCK_M, BLOCK_N, TAIL_N, chunks(DIM), DIM, STAGES)
    elif left > 0:
        _tile(matrices, lse, query, length, scale, TAIL_M, BLOCK_N, TAIL_N, single(DIM), DIM, STAGES)
