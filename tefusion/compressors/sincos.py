"""Fixed positions: sines and cosines of a place on a geometric scale of wavelengths (1706.03762, section 3.5)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

LONGEST = 10_000.0  # the longest wavelength is 2 pi times this


def sincos(places: Float[Tensor, "*lead"], width: int) -> Float[Tensor, "*lead {width}"]:
    half = -(-width // 2)
    scale = LONGEST ** (-torch.arange(half, device=places.device, dtype=torch.float32) / half)
    angle = places.float()[..., None] * scale
    return torch.cat([angle.sin(), angle.cos()], dim=-1)[..., :width]


def sincos_grid(height: int, width: int, channels: int, device: torch.device) -> Float[Tensor, "h w c"]:
    """Half of the channels say the row, the others the column."""
    down, across = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = rearrange(sincos(down.float(), channels // 2), "h c -> h 1 c").expand(-1, width, -1)
    columns = rearrange(sincos(across.float(), channels - channels // 2), "w c -> 1 w c").expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1)
