"""3D rotary positions (Su et al., 2104.09864; time, rows and columns as in Qwen2-VL's M-RoPE, 2409.12191)."""

import torch
from jaxtyping import Float
from torch import Tensor

BASE = 10_000.0


def rates(pairs: int, like: Tensor) -> Float[Tensor, "{pairs} 3"]:
    """Radians a unit for each pair of channels: a third for rows, a third for columns, the rest for seconds."""
    space = pairs // 3
    made = torch.zeros(pairs, 3, device=like.device, dtype=like.dtype)
    for axis, (first, count) in enumerate(((0, pairs - 2 * space), (pairs - 2 * space, space), (pairs - space, space))):
        made[first : first + count, axis] = BASE ** -(torch.arange(count, device=like.device, dtype=like.dtype) / count)
    return made


def rotate(
    qkv: Float[Tensor, "rows length 3 heads dim"], positions: Float[Tensor, "rows length 3"]
) -> Float[Tensor, "rows length 3 heads dim"]:
    """Queries and keys turned by their (seconds, row, column), so that their product knows the differences alone.

    Channel i turns with channel i + dim / 2. Angles are those of the positions' own precision.
    """
    pairs = qkv.shape[-1] // 2
    angles = (positions @ rates(pairs, positions).T)[:, :, None, None]
    cos, sin = angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)
    a, b = qkv[:, :, :2].chunk(2, dim=-1)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return torch.cat([turned, qkv[:, :, 2:]], dim=2)
