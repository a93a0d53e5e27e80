"""Sines and cosines of a number (Vaswani et al., 1706.03762, section 3.5): of real time, where a method reads it."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

BASE = 10_000.0  # the slowest wave is this many times longer than the fastest, of 2 pi


def sincos(values: Float[Tensor, "*lead"], width: int) -> Float[Tensor, "*lead {width}"]:
    """width / 2 sines, then as many cosines (and a zero where the width is odd), in fp32 at least."""
    waves = width // 2
    rates = BASE ** -(torch.arange(waves, device=values.device, dtype=values.dtype) / waves)
    angles = rearrange(values, "... -> ... 1") * rates
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width % 2))
