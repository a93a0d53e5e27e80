"""Backward of attention inside groups, in two kernels: one over queries for dq, then one over keys for dk and dv.

Every program owns what it writes, so there are no atomics and every run gives the same bits.
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
    place,
    scaled,
    single,
    store,
    zeros,
)


@triton.jit
def _slope_of_queries(
    fixed,
    k,
    v,
    key,
    length,
    log2_scale,
    dq,
    KEYS: tl.constexpr,
    WIDTHS: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds what a tile of keys gives to dq / scale."""
    q, dout, lse, delta = fixed
    keys = load(k, key, length, KEYS, WIDTHS, DIM, MASKED)
    p = tl.exp2(contract(q, keys, lse.dtype) * log2_scale - lse[:, None])
    if MASKED:
        p = tl.where((key + tl.arange(0, KEYS) < length)[None, :], p, 0.0)
    dp = contract(dout, load(v, key, length, KEYS, WIDTHS, DIM, MASKED), lse.dtype)
    return accumulate(dq, p * (dp - delta[:, None]), keys, lse.dtype)


@triton.jit
def _queries_tile(
    matrices,
    lse,
    delta,
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
    q, k, v, out_matrix, dout_matrix, dq_matrix = matrices
    ACC: tl.constexpr = lse.dtype.element_ty
    rows = query + tl.arange(0, ROWS)
    out = load(out_matrix, query, length, ROWS, WIDTHS, DIM, True)
    dout = load(dout_matrix, query, length, ROWS, WIDTHS, DIM, True)
    means = tl.zeros((ROWS,), ACC)
    for i in tl.static_range(len(WIDTHS)):
        means += tl.sum(out[i].to(ACC) * dout[i].to(ACC), 1)
    tl.store(delta + rows, means, mask=rows < length)
    lse = tl.load(lse + rows, mask=rows < length, other=0.0)
    fixed = (load(q, query, length, ROWS, WIDTHS, DIM, True), dout, lse, means)
    dq = zeros(ROWS, WIDTHS, ACC)
    full = length // BLOCK * BLOCK
    for key in tl.range(0, full, BLOCK, num_stages=STAGES):
        dq = _slope_of_queries(fixed, k, v, key, length, scale * LOG2_E, dq, BLOCK, WIDTHS, DIM, False)
    for key in tl.range(full, length, TAIL, num_stages=1):
        dq = _slope_of_queries(fixed, k, v, key, length, scale * LOG2_E, dq, TAIL, WIDTHS, DIM, True)
    store(dq_matrix, query, length, scaled(dq, scale), WIDTHS, DIM)


@triton.jit(do_not_specialize=COUNTS)
def queries_kernel(
    qkv,
    cu_seqlens,
    out,
    lse,
    dout,
    delta,
    dqkv,
    scale,
    length,
    total,
    heads,
    blocks,
    token8,
    part8,
    head8,
    dout_token8,
    dout_head8,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_M: tl.constexpr,
    TAIL_N: tl.constexpr,
    STAGES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """dq, and delta for `keys_kernel`: the mean of each query's dp, which is the sum of out * dout."""
    start, length, head, block = place(cu_seqlens, length, heads, blocks, RAGGED)
    q, k, v = one_head_packed(qkv, start, head, token8, part8, head8)
    unit = tl.full((), DIM // 8, tl.int32)
    o = one_head(out, start, head, heads * unit, unit)
    do = one_head(dout, start, head, dout_token8, dout_head8)
    matrices = (q, k, v, o, do, one_head(dqkv, start, head, 3 * heads * unit, unit))
    lse += head.to(tl.int64) * total + start
    delta += head.to(tl.int64) * total + start
    query = block * BLOCK_M
    left = length - query
    if left > narrow_limit(BLOCK_M, TAIL_M):
        _queries_tile(matrices, lse, delta, query, length, scale, BLOCK_M, BLOCK_N, TAIL_N, chunks(DIM), DIM, STAGES)
    elif left > 0:
        _queries_tile(matrices, lse, delta, query, length, scale, TAIL_M, BLOCK_N, TAIL_N, single(DIM), DIM, STAGES)


@triton.jit
def _slope_of_keys(
    fixed,
    moving,
    query,
    length,
    log2_scale,
    slopes,
    QUERIES: tl.constexpr,
    WIDTHS: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds what a tile of queries gives to dk / scale and dv. Scores are transposed: a row is a key."""
    k, v = fixed
    q, dout, lse, delta = moving
    dk, dv = slopes
    ACC: tl.constexpr = lse.dtype.element_ty
    rows = query + tl.arange(0, QUERIES)
    if MASKED:
        top = tl.load(lse + rows, mask=rows < length, other=0.0)
        means = tl.load(delta + rows, mask=rows < length, other=0.0)
    else:
        top = tl.load(lse + rows)
        means = tl.load(delta + rows)
    queries = load(q, query, length, QUERIES, WIDTHS, DIM, MASKED)
    p = tl.exp2(contract(k, queries, ACC) * log2_scale - top[None, :])
    slope = load(dout, query, length, QUERIES, WIDTHS, DIM, MASKED)
    dv = accumulate(dv, p, slope, ACC)
    dp = contract(v, slope, ACC)
    return accumulate(dk, p * (dp - means[None, :]), queries, ACC), dv


@triton.jit
def _keys_tile(
    matrices,
    lse,
    delta,
    key,
    length,
    scale,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
    WIDTHS: tl.constexpr,
    DIM: tl.constexpr,
    STAGES: tl.constexpr,
):
    q, k, v, dout, dk_matrix, dv_matrix = matrices
    ACC: tl.constexpr = lse.dtype.element_ty
    log2_scale = scale * LOG2_E
    fixed = (load(k, key, length, ROWS, WIDTHS, DIM, True), load(v, key, length, ROWS, WIDTHS, DIM, True))
    moving = (q, dout, lse, delta)
    slopes = (zeros(ROWS, WIDTHS, ACC), zeros(ROWS, WIDTHS, ACC))
    full = length // BLOCK * BLOCK
    for query in tl.range(0, full, BLOCK, num_stages=STAGES):
        slopes = _slope_of_keys(fixed, moving, query, length, log2_scale, slopes, BLOCK, WIDTHS, DIM, False)
    for query in tl.range(full, length, TAIL, num_stages=1):
        slopes = _slope_of_keys(fixed, moving, query, length, log2_scale, slopes, TAIL, WIDTHS, DIM, True)
    store(dk_matrix, key, length, scaled(slopes[0], scale), WIDTHS, DIM)
    store(dv_matrix, key, length, slopes[1], WIDTHS, DIM)


@triton.jit(do_not_specialize=COUNTS)
def keys_kernel(
    qkv,
    cu_seqlens,
    lse,
    dout,
    delta,
    dqkv,
    scale,
    length,
    total,
    heads,
    blocks,
    token8,
    part8,
    head8,
    dout_token8,
    dout_head8,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_M: tl.constexpr,
    TAIL_N: tl.constexpr,
    STAGES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """dk and dv."""
    start, length, head, block = place(cu_seqlens, length, heads, blocks, RAGGED)
    q, k, v = one_head_packed(qkv, start, head, token8, part8, head8)
    unit = tl.full((), DIM // 8, tl.int32)
    _, dk, dv = one_head_packed(dqkv, start, head, 3 * heads * unit, heads * unit, unit)
    matrices = (q, k, v, one_head(dout, start, head, dout_token8, dout_head8), dk, dv)
    lse += head.to(tl.int64) * total + start
    delta += head.to(tl.int64) * total + start
    key = block * BLOCK_N
    left = length - key
    if left > narrow_limit(BLOCK_N, TAIL_N):
        _keys_tile(matrices, lse, delta, key, length, scale, BLOCK_N, BLOCK_M, TAIL_M, chunks(DIM), DIM, STAGES)
    elif left > 0:
        _keys_tile(matrices, lse, delta, key, length, scale, TAIL_N, BLOCK_M, TAIL_M, single(DIM), DIM, STAGES)
