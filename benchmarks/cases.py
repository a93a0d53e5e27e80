"""What is timed: the sweeps of group attention, on a GPU and, small, on a CPU."""

from collections.abc import Iterator
from typing import NamedTuple

import comparators
import torch
from torch import Tensor


class Case(NamedTuple):
    """16 frames of `tokens` tokens, in groups of k; `last` frames in the last group where groups are ragged."""

    sweep: str
    k: int
    tokens: int = 257
    dim: int = 112
    dtype: torch.dtype = torch.bfloat16
    directions: tuple[str, ...] = ("forward", "backward")
    backends: tuple[str, ...] = comparators.ON_GPU
    heads: int = 16
    frames: int = 16
    last: int | None = None

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """A packed qkv, and the bounds where groups are ragged."""
        groups, length = self.frames // self.k, self.k * self.tokens
        qkv = torch.randn(groups, length, 3, self.heads, self.dim, device=device, dtype=self.dtype)
        if self.last is None:
            return qkv, None
        ends = [length * i for i in range(groups)] + [length * (groups - 1) + self.last * self.tokens]
        return qkv.flatten(0, 1)[: ends[-1]], torch.tensor(ends, dtype=torch.int32, device=device)


def gpu_cases() -> Iterator[Case]:
    """What matters most comes first: the time may end before the list does."""
    plain = tuple(name for name in comparators.ON_GPU if name != "flex")  # its compiler takes seconds a shape
    yield from (Case("k", k) for k in (1, 2, 4, 8, 16))
    yield from (Case("dim", k, dim=d, backends=plain) for d in (64, 72, 80, 88, 96, 128) for k in (1, 4))
    yield from (Case("tokens", 4, tokens=n, dim=64, heads=12, backends=plain) for n in (50, 197, 577, 1025))
    yield from (Case("dtype", 4, dtype=dtype, backends=plain) for dtype in (torch.float16, torch.float32))
    yield Case("ragged", 4, last=3, backends=tuple(name for name in plain if name != "sdpa-cudnn"))


def cpu_cases() -> Iterator[Case]:
    small = {"tokens": 9, "dim": 16, "heads": 2, "frames": 4, "dtype": torch.float32, "backends": comparators.ON_CPU}
    yield from (Case("k", k, **small) for k in (1, 2, 4))
    yield Case("ragged", 2, last=1, **small)
