"""How the kernels cut an attention into matrix products, and how much of what they execute is useful.

Shapes of matrix products are powers of two from 16 on, and neither D = 112 nor L = 257 k is one. So a head is cut into
chunks of columns, and what full tiles leave of L gets a narrow tile of its own: 257 k = 256 k + k.
"""

from math import ceil

from tefusion.kernels.configs import Config


def chunks(dim: int) -> tuple[int, ...]:
    """Powers of two that sum to `dim` rounded up to 16: 112 is (64, 32, 16), 72 is (64, 16) with half a chunk empty."""
    units = (dim + 15) // 16
    return tuple(16 << bit for bit in range(units.bit_length() - 1, -1, -1) if units >> bit & 1)


def padded(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks of the forward's output: one of 128 where there are three, as three thin products need more registers."""
    return (128,) if len(widths) > 2 else widths


def single(dim: int) -> tuple[int, ...]:
    """The one chunk of a narrow tile, which is too small to share several thin products among warps."""
    return (max(16, 1 << (dim - 1).bit_length()),)


def tail(length: int, block: int) -> int:
    """Width of the tile behind the full ones: the narrowest that covers the rest, `block` where there is no rest."""
    rest = length % block
    return max(16, 1 << (rest - 1).bit_length()) if rest else block


def tiles(length: int, block: int) -> int:
    """Full tiles and the last one."""
    return ceil(length / block)


def covered(length: int, block: int) -> tuple[int, int]:
    """Rows that full tiles compute for `length` rows, and rows of the narrow tile, if the last one is narrow."""
    rest, last = length % block, tail(length, block)
    narrow = last if rest and last < block else 0
    return (length - rest if narrow else ceil(length / block) * block), narrow


def executed_over_useful(length: int, dim: int, config: Config) -> float:
    """Multiplications in the forward kernel's matrix products over those that attention defines."""
    queries, narrow = covered(length, config.block_m)
    keys = sum(covered(length, config.block_n))
    executed = keys * (queries * (sum(chunks(dim)) + sum(padded(chunks(dim)))) + narrow * 2 * sum(single(dim)))
    return executed / (length * length * 2 * dim)
