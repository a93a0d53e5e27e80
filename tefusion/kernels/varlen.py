"""Groups of unequal length in one packed tensor: `cu_seqlens` holds where each starts, and where the last one ends."""

from collections.abc import Callable
from itertools import groupby, pairwise

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_checked = WeakTensorKeyDictionary()  # cu_seqlens -> (its version, the lengths)


def check_packed(qkv: Tensor, cu_seqlens: Tensor | None) -> None:
    """What can be seen of a call without waiting for its device. Raises ValueError."""
    if not qkv.is_floating_point():
        raise ValueError(f"qkv must hold floating-point numbers, got {qkv.dtype}")
    shape = ("groups", "length", "3", "heads", "dim") if cu_seqlens is None else ("total", "3", "heads", "dim")
    if qkv.dim() != len(shape) or qkv.shape[-3] != 3:
        raise ValueError(f"qkv must be ({', '.join(shape)}), got {tuple(qkv.shape)}")
    if cu_seqlens is None:
        return
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(
            f"cu_seqlens must be (groups + 1,) in int32, got {tuple(cu_seqlens.shape)} in {cu_seqlens.dtype}"
        )
    if cu_seqlens.device != qkv.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, qkv on {qkv.device}")


def lengths(cu_seqlens: Tensor, total: int) -> list[int]:
    """The groups' lengths, read from the device once: the layers of a tower that share the tensor wait for it once.

    Raises ValueError where the bounds do not start at 0, do not increase, or do not end at `total`.
    """
    version = None if cu_seqlens.is_inference() else cu_seqlens._version
    known_version, known = _checked.get(cu_seqlens, (None, []))
    if version is None or version != known_version:
        known = differences(read(cu_seqlens))
        _checked[cu_seqlens] = version, known
    if sum(known) != total:
        raise ValueError(f"cu_seqlens ends at {sum(known)}, but qkv holds {total} tokens")
    return known


def read(cu_seqlens: Tensor) -> list[int]:
    """Waits for the device."""
    return cu_seqlens.tolist()


def differences(bounds: list[int]) -> list[int]:
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens must start at 0, got {bounds[0]}")
    for i, (start, end) in enumerate(pairwise(bounds)):
        if end <= start:
            raise ValueError(f"cu_seqlens must increase, got {start} and then {end} at {i + 1}")
    return [end - start for start, end in pairwise(bounds)]


def dense_by_dense(attend: Callable[[Tensor], Tensor], qkv: Tensor, cu_seqlens: Tensor) -> Tensor:
    """A ragged call as dense ones: neighbours of equal length are the rows of one call, as a view."""
    runs = [(length, len(list(same))) for length, same in groupby(lengths(cu_seqlens, len(qkv)))]
    parts = qkv.split([length * count for length, count in runs])
    outs = [
        rearrange(attend(rearrange(part, "(g l) ... -> g l ...", l=length)), "g l h d -> (g l) h d")
        for part, (length, _) in zip(parts, runs, strict=True)
    ]
    return torch.cat(outs)
