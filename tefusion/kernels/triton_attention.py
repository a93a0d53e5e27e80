"""Attention inside groups in Triton, over a packed qkv and back into a packed dqkv.

The forward is FlashAttention-2's (2307.08691). The backward is two kernels, one over queries for dq and one over keys
for dk and dv: each program owns what it writes, so there are no atomics and every run gives the same bits.

In the kernels a matrix is a pair (pointer, elements from row to row), and a tile of it a tuple of chunks of columns whose
widths are powers of two (see `tiling`). Strides travel in units of eight elements: the compiler then knows that every
row starts at a multiple of 16 bytes. Dense groups are ragged ones of equal length.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tefusion.kernels import configs, tiling

LOG2_E = 1.4426950408889634
COUNTS = ["length", "total", "heads", "blocks", "token8", "part8", "head8", "dout_token8", "dout_head8"]

chunks = triton.constexpr_function(tiling.chunks)
padded = triton.constexpr_function(tiling.padded)


@triton.constexpr_function
def before(widths, i):
    """The first column of chunk i."""
    return sum(widths[:i])


@triton.jit
def _pointers(matrix, first, ROWS: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr):
    """Only the place of a tile needs 64 bits; places inside it fit into 32."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = START + tl.arange(0, WIDTH)[None, :]
    return matrix[0] + first * matrix[1].to(tl.int64) + (rows * matrix[1] + columns), first + rows, columns


@triton.jit
def _load_chunk(
    matrix,
    first,
    length,
    ROWS: tl.constexpr,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    pointers, rows, columns = _pointers(matrix, first, ROWS, START, WIDTH)
    if MASKED:
        return tl.load(pointers, mask=(rows < length) & (columns < DIM), other=0.0)
    elif START + WIDTH > DIM:
        return tl.load(pointers, mask=columns < DIM, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _load(matrix, first, length, ROWS: tl.constexpr, WIDTHS: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr):
    """ROWS rows from `first` on: zeros behind column DIM and, where masked, from row `length` on."""
    tile = ()
    for i in tl.static_range(len(WIDTHS)):
        tile = tile + (_load_chunk(matrix, first, length, ROWS, before(WIDTHS, i), WIDTHS[i], DIM, MASKED),)
    return tile


@triton.jit
def _store_chunk(matrix, first, length, chunk, START: tl.constexpr, DIM: tl.constexpr):
    pointers, rows, columns = _pointers(matrix, first, chunk.shape[0], START, chunk.shape[1])
    tl.store(pointers, chunk.to(matrix[0].dtype.element_ty), mask=(rows < length) & (columns < DIM))


@triton.jit
def _store(matrix, first, length, tile, factor, WIDTHS: tl.constexpr, DIM: tl.constexpr):
    """tile * factor, from row `first` on, up to row `length`."""
    for i in tl.static_range(len(WIDTHS)):
        _store_chunk(matrix, first, length, tile[i] * factor, before(WIDTHS, i), DIM)


@triton.jit
def _zeros_chunk(ROWS: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr):
    return tl.zeros((ROWS, WIDTH), ACC)


@triton.jit
def _zeros(ROWS: tl.constexpr, WIDTHS: tl.constexpr, ACC: tl.constexpr):
    tile = ()
    for i in tl.static_range(len(WIDTHS)):
        tile = tile + (_zeros_chunk(ROWS, WIDTHS[i], ACC),)
    return tile


@triton.jit
def _contract(a, b, ACC: tl.constexpr):
    """a b^T, chunk by chunk along the columns of both."""
    product = _zeros_chunk(a[0].shape[0], b[0].shape[0], ACC)
    for i in tl.static_range(len(a)):
        product = tl.dot(a[i], tl.trans(b[i]), product, input_precision="tf32x3", out_dtype=ACC)
    return product


@triton.jit
def _accumulate(sums, weights, b, ACC: tl.constexpr):
    """sums + weights b."""
    tile = ()
    for i in tl.static_range(len(b)):
        tile = tile + (tl.dot(weights.to(b[i].dtype), b[i], sums[i], input_precision="tf32x3", out_dtype=ACC),)
    return tile


@triton.jit
def _scaled(tile, factor):
    scaled = ()
    for i in tl.static_range(len(tile)):
        scaled = scaled + (tile[i] * factor,)
    return scaled


@triton.jit
def _place(cu_seqlens, length, heads, blocks, RAGGED: tl.constexpr):
    """The first token of this program's group, the group's length, the head and the block."""
    program = tl.program_id(0)
    group = (program // blocks // heads).to(tl.int64)
    if RAGGED:
        start = tl.load(cu_seqlens + group).to(tl.int64)
        length = (tl.load(cu_seqlens + group + 1) - start).to(tl.int32)
    else:
        start = group * length
    return start, length, program // blocks % heads, program % blocks


@triton.jit
def _matrix(pointer, start, head, token8, head8):
    return pointer + start * (token8 * 8).to(tl.int64) + head * (head8 * 8).to(tl.int64), token8 * 8


@triton.jit
def _packed(qkv, start, head, token8, part8, head8):
    """q, k and v of one head."""
    part = (part8 * 8).to(tl.int64)
    q = _matrix(qkv, start, head, token8, head8)
    return q, (q[0] + part, q[1]), (q[0] + 2 * part, q[1])


@triton.jit
def _attend(q, k, v, key, length, scale_log2, state, KEYS: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr):
    """Adds one tile of keys to each row's maximum (log2), mass and mass-weighted sum of values."""
    top, mass, sums = state
    s = _contract(q, _load(k, key, length, KEYS, chunks(DIM), DIM, MASKED), top.dtype)
    if MASKED:
        s = tl.where((key + tl.arange(0, KEYS) < length)[None, :], s, float("-inf"))
    higher = tl.maximum(top, tl.max(s, 1) * scale_log2)
    p = tl.exp2(s * scale_log2 - higher[:, None])
    decay = tl.exp2(top - higher)
    values = _load(v, key, length, KEYS, padded(chunks(DIM)), DIM, MASKED)
    return higher, mass * decay + tl.sum(p, 1), _accumulate(_scaled(sums, decay[:, None]), p, values, top.dtype)


@triton.jit
def _forward_tile(
    matrices,
    query,
    length,
    scale_log2,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
    DIM: tl.constexpr,
    STAGES: tl.constexpr,
):
    q_matrix, k, v, out, lse = matrices
    q = _load(q_matrix, query, length, ROWS, chunks(DIM), DIM, True)
    ACC: tl.constexpr = lse.dtype.element_ty
    state = (tl.full((ROWS,), float("-inf"), ACC), tl.zeros((ROWS,), ACC), _zeros(ROWS, padded(chunks(DIM)), ACC))
    full = length // BLOCK * BLOCK
    for key in tl.range(0, full, BLOCK, num_stages=STAGES):
        state = _attend(q, k, v, key, length, scale_log2, state, BLOCK, DIM, False)
    for key in tl.range(full, length, TAIL, num_stages=1):
        state = _attend(q, k, v, key, length, scale_log2, state, TAIL, DIM, True)
    top, mass, sums = state
    _store(out, query, length, sums, 1 / mass[:, None], padded(chunks(DIM)), DIM)
    rows = query + tl.arange(0, ROWS)
    tl.store(lse + rows, top + tl.log2(mass), mask=rows < length)


@triton.jit(do_not_specialize=COUNTS)
def forward_kernel(
    qkv,
    cu_seqlens,
    out,
    lse,
    scale_log2,
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
    start, length, head, block = _place(cu_seqlens, length, heads, blocks, RAGGED)
    q, k, v = _packed(qkv, start, head, token8, part8, head8)
    o = _matrix(out, start, head, heads * (DIM // 8), tl.full((), DIM // 8, tl.int32))
    matrices = (q, k, v, o, lse + head.to(tl.int64) * total + start)
    query = block * BLOCK_M
    left = length - query
    if left > (TAIL_M if TAIL_M < BLOCK_M else 0):
        _forward_tile(matrices, query, length, scale_log2, BLOCK_M, BLOCK_N, TAIL_N, DIM, STAGES)
    elif left > 0:
        _forward_tile(matrices, query, length, scale_log2, TAIL_M, BLOCK_N, TAIL_N, DIM, STAGES)


@triton.jit
def _slope_of_queries(
    q,
    k,
    v,
    dout,
    key,
    length,
    scale_log2,
    lse,
    delta,
    dq,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds what one tile of keys gives to dq / scale."""
    keys = _load(k, key, length, KEYS, chunks(DIM), DIM, MASKED)
    p = tl.exp2(_contract(q, keys, lse.dtype) * scale_log2 - lse[:, None])
    if MASKED:
        p = tl.where((key + tl.arange(0, KEYS) < length)[None, :], p, 0.0)
    dp = _contract(dout, _load(v, key, length, KEYS, chunks(DIM), DIM, MASKED), lse.dtype)
    return _accumulate(dq, p * (dp - delta[:, None]), keys, lse.dtype)


@triton.jit
def _queries_tile(
    matrices,
    lse_row,
    delta_row,
    query,
    length,
    scale,
    scale_log2,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
    DIM: tl.constexpr,
    STAGES: tl.constexpr,
):
    q_matrix, k, v, out, dout_matrix, dq_matrix = matrices
    ACC: tl.constexpr = lse_row.dtype.element_ty
    rows = query + tl.arange(0, ROWS)
    dout = _load(dout_matrix, query, length, ROWS, chunks(DIM), DIM, True)
    o = _load(out, query, length, ROWS, chunks(DIM), DIM, True)
    delta = tl.zeros((ROWS,), ACC)
    for i in tl.static_range(len(o)):
        delta += tl.sum(o[i].to(ACC) * dout[i].to(ACC), 1)
    tl.store(delta_row + rows, delta, mask=rows < length)
    lse = tl.load(lse_row + rows, mask=rows < length, other=float("inf"))
    q = _load(q_matrix, query, length, ROWS, chunks(DIM), DIM, True)
    dq = _zeros(ROWS, chunks(DIM), ACC)
    full = length // BLOCK * BLOCK
    for key in tl.range(0, full, BLOCK, num_stages=STAGES):
        dq = _slope_of_queries(q, k, v, dout, key, length, scale_log2, lse, delta, dq, BLOCK, DIM, False)
    for key in tl.range(full, length, TAIL, num_stages=1):
        dq = _slope_of_queries(q, k, v, dout, key, length, scale_log2, lse, delta, dq, TAIL, DIM, True)
    _store(dq_matrix, query, length, dq, scale, chunks(DIM), DIM)


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
    scale_log2,
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
    """dq, and delta, the sum of out * dout in each row, for `keys_kernel`."""
    start, length, head, block = _place(cu_seqlens, length, heads, blocks, RAGGED)
    q, k, v = _packed(qkv, start, head, token8, part8, head8)
    unit = tl.full((), DIM // 8, tl.int32)
    o = _matrix(out, start, head, heads * unit, unit)
    do = _matrix(dout, start, head, dout_token8, dout_head8)
    dq = _matrix(dqkv, start, head, 3 * heads * unit, unit)
    matrices = (q, k, v, o, do, dq)
    lse += head.to(tl.int64) * total + start
    delta += head.to(tl.int64) * total + start
    query = block * BLOCK_M
    left = length - query
    if left > (TAIL_M if TAIL_M < BLOCK_M else 0):
        _queries_tile(matrices, lse, delta, query, length, scale, scale_log2, BLOCK_M, BLOCK_N, TAIL_N, DIM, STAGES)
    elif left > 0:
        _queries_tile(matrices, lse, delta, query, length, scale, scale_log2, TAIL_M, BLOCK_N, TAIL_N, DIM, STAGES)


@triton.jit
def _slope_of_keys(
    k,
    v,
    q,
    dout,
    lse_row,
    delta_row,
    query,
    length,
    scale_log2,
    slopes,
    QUERIES: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds what one tile of queries gives to dk / scale and dv. Weights are transposed: a row is a key."""
    ACC: tl.constexpr = lse_row.dtype.element_ty
    dk, dv = slopes
    rows = query + tl.arange(0, QUERIES)
    if MASKED:
        lse = tl.load(lse_row + rows, mask=rows < length, other=float("inf"))  # weighs nothing
        delta = tl.load(delta_row + rows, mask=rows < length, other=0.0)
    else:
        lse = tl.load(lse_row + rows)
        delta = tl.load(delta_row + rows)
    queries = _load(q, query, length, QUERIES, chunks(DIM), DIM, MASKED)
    p = tl.exp2(_contract(k, queries, ACC) * scale_log2 - lse[None, :])
    slope = _load(dout, query, length, QUERIES, chunks(DIM), DIM, MASKED)
    dv = _accumulate(dv, p, slope, ACC)
    dp = _contract(v, slope, ACC)
    return _accumulate(dk, p * (dp - delta[None, :]), queries, ACC), dv


@triton.jit
def _keys_tile(
    matrices,
    lse_row,
    delta_row,
    key,
    length,
    scale,
    scale_log2,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
    DIM: tl.constexpr,
    STAGES: tl.constexpr,
):
    q, k_matrix, v_matrix, dout, dk_matrix, dv_matrix = matrices
    ACC: tl.constexpr = lse_row.dtype.element_ty
    k = _load(k_matrix, key, length, ROWS, chunks(DIM), DIM, True)
    v = _load(v_matrix, key, length, ROWS, chunks(DIM), DIM, True)
    slopes = (_zeros(ROWS, chunks(DIM), ACC), _zeros(ROWS, chunks(DIM), ACC))
    full = length // BLOCK * BLOCK
    for query in tl.range(0, full, BLOCK, num_stages=STAGES):
        slopes = _slope_of_keys(
            k, v, q, dout, lse_row, delta_row, query, length, scale_log2, slopes, BLOCK, DIM, False
        )
    for query in tl.range(full, length, TAIL, num_stages=1):
        slopes = _slope_of_keys(k, v, q, dout, lse_row, delta_row, query, length, scale_log2, slopes, TAIL, DIM, True)
    dk, dv = slopes
    _store(dk_matrix, key, length, dk, scale, chunks(DIM), DIM)
    _store(dv_matrix, key, length, dv, 1.0, chunks(DIM), DIM)


@triton.jit(do_not_specialize=COUNTS)
def keys_kernel(
    qkv,
    cu_seqlens,
    lse,
    dout,
    delta,
    dqkv,
    scale,
    scale_log2,
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
    start, length, head, block = _place(cu_seqlens, length, heads, blocks, RAGGED)
    q, k, v = _packed(qkv, start, head, token8, part8, head8)
    do = _matrix(dout, start, head, dout_token8, dout_head8)
    unit = tl.full((), DIM // 8, tl.int32)
    _, dk, dv = _packed(dqkv, start, head, 3 * heads * unit, heads * unit, unit)
    matrices = (q, k, v, do, dk, dv)
    lse += head.to(tl.int64) * total + start
    delta += head.to(tl.int64) * total + start
    key = block * BLOCK_N
    left = length - key
    if left > (TAIL_N if TAIL_N < BLOCK_N else 0):
        _keys_tile(matrices, lse, delta, key, length, scale, scale_log2, BLOCK_N, BLOCK_M, TAIL_M, DIM, STAGES)
    elif left > 0:
        _keys_tile(matrices, lse, delta, key, length, scale, scale_log2, TAIL_N, BLOCK_M, TAIL_M, DIM, STAGES)
