"""What the attention kernels share: tiles cut into chunks of columns, their products, and a program's place.

A matrix is a pair (pointer, elements from row to row). A tile of it is a tuple of chunks, whose widths are powers of
two (see `tiling`). Strides travel in units of eight elements: the compiler then knows that every row starts at a
multiple of 16 bytes. What is known when a kernel is compiled is in capitals.
"""

# mypy: disable-error-code=assignment
# in a kernel a tuple that grows has a new type in every round of an unrolled loop

import triton
import triton.language as tl

from tefusion.kernels import tiling

COUNTS = ["length", "total", "heads", "blocks", "token8", "part8", "head8", "dout_token8", "dout_head8"]
LOG2_E = tl.constexpr(1.4426950408889634)

chunks = triton.constexpr_function(tiling.chunks)
padded = triton.constexpr_function(tiling.padded)
single = triton.constexpr_function(tiling.single)


@triton.constexpr_function
def before(widths, i):
    """The first column of chunk i."""
    return sum(widths[:i])


@triton.constexpr_function
def narrow_limit(block, tail):
    """How many rows a narrow tile takes, none where it would be as wide as a full one."""
    return tail if tail < block else 0


@triton.jit
def place(cu_seqlens, length, heads, blocks, RAGGED: tl.constexpr):
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
def one_head(tokens, start, head, token8, head8):
    """The matrix of one group and head."""
    return tokens + start * (token8 * 8).to(tl.int64) + head * (head8 * 8).to(tl.int64), token8 * 8


@triton.jit
def one_head_packed(qkv, start, head, token8, part8, head8):
    """q, k and v of one group and head."""
    q, stride = one_head(qkv, start, head, token8, head8)
    part = (part8 * 8).to(tl.int64)
    return (q, stride), (q + part, stride), (q + 2 * part, stride)


@triton.jit
def _pointers(matrix, first, ROWS: tl.constexpr, START: tl.constexpr, WIDTH: tl.constexpr):
    """Only the place of a tile needs 64 bits, places inside it fit into 32."""
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
def load(matrix, first, length, ROWS: tl.constexpr, WIDTHS: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr):
    """ROWS rows from `first` on: zeros behind column DIM and, where masked, from row `length` on."""
    tile = ()
    for i in tl.static_range(len(WIDTHS)):
        tile += (_load_chunk(matrix, first, length, ROWS, before(WIDTHS, i), WIDTHS[i], DIM, MASKED),)
    return tile


@triton.jit
def _store_chunk(matrix, first, length, chunk, START: tl.constexpr, DIM: tl.constexpr):
    pointers, rows, columns = _pointers(matrix, first, chunk.shape[0], START, chunk.shape[1])
    tl.store(pointers, chunk.to(matrix[0].dtype.element_ty), mask=(rows < length) & (columns < DIM))


@triton.jit
def store(matrix, first, length, tile, WIDTHS: tl.constexpr, DIM: tl.constexpr):
    """The tile's rows from row `first` on, up to row `length`."""
    for i in tl.static_range(len(WIDTHS)):
        _store_chunk(matrix, first, length, tile[i], before(WIDTHS, i), DIM)


@triton.jit
def _zeros_chunk(ROWS: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr):
    return tl.zeros((ROWS, WIDTH), ACC)


@triton.jit
def zeros(ROWS: tl.constexpr, WIDTHS: tl.constexpr, ACC: tl.constexpr):
    tile = ()
    for i in tl.static_range(len(WIDTHS)):
        tile += (_zeros_chunk(ROWS, WIDTHS[i], ACC),)
    return tile


@triton.jit
def scaled(tile, factor):
    """tile * factor: a number, or a column of one a row."""
    product = ()
    for i in tl.static_range(len(tile)):
        product += (tile[i] * factor,)
    return product


@triton.jit
def contract(a, b, ACC: tl.constexpr):
    """a b^T, chunk by chunk."""
    product = _zeros_chunk(a[0].shape[0], b[0].shape[0], ACC)
    for i in tl.static_range(len(a)):
        product = tl.dot(a[i], tl.trans(b[i]), product, input_precision="tf32x3", out_dtype=ACC)
    return product


@triton.jit
def accumulate(sums, weights, b, ACC: tl.constexpr):
    """sums + weights b."""
    tile = ()
    for i in tl.static_range(len(b)):
        tile += (tl.dot(weights.to(b[i].dtype), b[i], sums[i], input_precision="tf32x3", out_dtype=ACC),)
    return tile
