"""Frames of another size, bicubic, antialiased, not cropped. Not in `video.py`, which reads without torch."""

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch.nn import functional


def resize(frames: UInt8[torch.Tensor, "t h w 3"], size: tuple[int, int]) -> UInt8[torch.Tensor, "t h2 w2 3"]:
    """To (height, width)."""
    pixels = rearrange(frames.float(), "t h w c -> t c h w")
    pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True)
    return rearrange(pixels.round().clamp(0, 255).to(torch.uint8), "t c h w -> t h w c").contiguous()
