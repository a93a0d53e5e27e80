"""How the attention kernels are launched: tiles, warps and stages by architecture, D, bytes a number, and length.

Not measured on a GPU: the table holds the largest tiles that the compiler fits into registers without spilling and into
the chip's shared memory (`make aot`); the backward in fp32 spills in all of them. What `triton_attention.tune` measures
comes before the table; `export` keeps it in a file, `load` or TEFUSION_ATTENTION_CONFIGS=<file> brings it back.
"""

import json
import os
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """`block_m` queries and `block_n` keys are a full tile."""

    block_m: int
    block_n: int
    warps: int
    stages: int


SHARED = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}  # bytes a program may use
FAMILY = {80: 80, 86: 80, 90: 90, 100: 100, 120: 80}  # which part of the table serves a chip
KERNELS = ("forward", "queries", "keys")

# D up to -> a launch of each kernel, by which part of the table serves a chip, for two bytes a number
HALF = {
    80: {
        64: (Config(128, 64, 8, 2), Config(128, 64, 8, 2), Config(64, 128, 8, 2)),
        80: (Config(128, 64, 8, 2), Config(128, 32, 8, 2), Config(32, 128, 8, 2)),
        128: (Config(128, 64, 8, 2), Config(64, 32, 8, 2), Config(32, 64, 8, 1)),
    },
    90: {
        64: (Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(64, 128, 8, 2)),
        128: (Config(128, 64, 8, 3), Config(128, 64, 8, 2), Config(32, 128, 8, 2)),
    },
    100: {  # beyond 80 larger tiles of the backward outgrow its 512 columns of tensor memory: Triton emits a bare trap
        80: (Config(128, 64, 8, 2), Config(128, 64, 8, 2), Config(64, 128, 8, 2)),
        96: (Config(128, 128, 8, 2), Config(128, 32, 8, 2), Config(32, 128, 8, 2)),  # Triton 3.6 spills in 128 x 64
        128: (Config(128, 64, 8, 2), Config(128, 32, 8, 2), Config(32, 128, 8, 2)),
    },
}
# for groups that one tile holds, and for fp32: on every chip
SHORT, SHORTEST = 64, {128: (Config(64, 64, 4, 2), Config(64, 32, 8, 2), Config(32, 64, 8, 1))}
SINGLE = {
    64: (Config(64, 32, 4, 2), Config(64, 32, 4, 2), Config(16, 64, 4, 2)),
    96: (Config(32, 16, 8, 1), Config(64, 16, 8, 2), Config(16, 32, 8, 2)),
    112: (Config(32, 32, 8, 2), Config(64, 16, 8, 2), Config(16, 32, 8, 2)),
    128: (Config(16, 32, 4, 2), Config(64, 16, 8, 2), Config(16, 32, 8, 2)),  # Triton 3.6 spills in 32 x 32
}
TUNED: dict[str, Config] = {}


def pick(kernel: str, architecture: int, dim: int, size: int, length: int) -> Config:
    """`size`: bytes a number; `length`: of the longest group. What was tuned comes before the table."""
    if found := TUNED.get(key(kernel, architecture, dim, size, length)):
        return found
    family = FAMILY[chip(architecture)]
    by_dim = SINGLE if size > 2 else SHORTEST if length <= SHORT else HALF[family]
    return by_dim[min(top for top in by_dim if top >= dim)][KERNELS.index(kernel)]


def chip(architecture: int) -> int:
    """The nearest older chip of the table, whose limits this one has at least."""
    older = [known for known in SHARED if known <= architecture]
    if not older:
        raise ValueError(f"the Triton kernels need compute capability 8.0 or newer, got {architecture / 10}")
    return max(older)


def key(kernel: str, architecture: int, dim: int, size: int, length: int) -> str:
    """Lengths that share an entry lie between two powers of two."""
    return f"{kernel}/sm_{architecture}/dim_{dim}/bytes_{size}/length_{1 << (length - 1).bit_length()}"


def candidates(kernel: str) -> list[Config]:
    """What `triton_attention.tune` tries."""
    long, short = ("block_n", "block_m") if kernel == "keys" else ("block_m", "block_n")
    shapes = [{long: a, short: b} for a, b in product((64, 128), (32, 64, 128)) if a >= b]
    return [Config(**shape, warps=w, stages=s) for shape, w, s in product(shapes, (4, 8), (2, 3, 4))]


def export(path: Path) -> None:
    """Writes what was tuned as JSON."""
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump({name: astuple(config) for name, config in sorted(TUNED.items())}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load(path: Path) -> None:
    """Adds what `export` wrote; ValueError where it is something else."""
    try:
        read = {str(name): Config(*map(int, numbers)) for name, numbers in json.loads(path.read_text("utf-8")).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no launch configurations: {error}") from error
    TUNED.update(read)


if path := os.environ.get("TEFUSION_ATTENTION_CONFIGS"):
    load(Path(path))
