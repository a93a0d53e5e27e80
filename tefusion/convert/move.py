"""What stands where: some tensors, end to end, are some others, end to end.

One rule covers a new name, another shape of the same numbers, a map that is split, and maps that are joined, because
rows of a matrix that follow each other are numbers that follow each other.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Slot(NamedTuple):
    name: str
    shape: tuple[int, ...]


class Move(NamedTuple):
    """`divisor` is a power of two, so that dividing and multiplying are exact."""

    sources: tuple[Slot, ...]
    targets: tuple[Slot, ...]
    divisor: float = 1.0

    @property
    def back(self) -> "Move":
        return Move(self.targets, self.sources, 1 / self.divisor)

    def carry(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The targets made of the sources. Raises ValueError where dividing loses a bit."""
        flat = tensors[0].flatten() if len(tensors) == 1 else torch.cat([tensor.flatten() for tensor in tensors])
        if self.divisor != 1:
            divided = flat / self.divisor
            if not torch.equal(divided * self.divisor, flat):
                raise ValueError(f"{self.sources[0].name} divided by {self.divisor:g} is not exact in {flat.dtype}")
            flat = divided
        parts = flat.split([prod(slot.shape) for slot in self.targets])
        return [part.reshape(slot.shape) for part, slot in zip(parts, self.targets, strict=True)]


def same(theirs: str, ours: str, shape: Sequence[int], stored: Sequence[int] | None = None) -> Move:
    """Another name; `stored` is their shape where it differs from ours."""
    return Move((Slot(theirs, tuple(stored or shape)),), (Slot(ours, tuple(shape)),))


def split(whole: Slot, parts: Sequence[Slot]) -> Move:
    return Move((whole,), tuple(parts))


def joined(parts: Sequence[Slot], whole: Slot) -> Move:
    return Move(tuple(parts), (whole,))


def in_shards(moves: Sequence[Move], bytes_of: Sequence[int], most: int) -> list[list[Move]]:
    """The moves in their order, in parts of at most `most` bytes or of one move."""
    parts: list[list[Move]] = []
    filled = 0
    for move, size in zip(moves, bytes_of, strict=True):
        if not parts or filled + size > most:
            parts.append([])
            filled = 0
        parts[-1].append(move)
        filled += size
    return parts


def ends(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where parts of these sizes begin and end."""
    stops = list(accumulate(sizes))
    return list(zip([0, *stops], stops, strict=False))
