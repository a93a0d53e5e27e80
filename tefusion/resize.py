"""Frames of another size, bicubic, antialiased, not cropped. Not in `video.py`, which reads without torch."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor


def resize(frames: UInt8[Tensor, "t h w 3"], size: tuple[int, int]) -> UInt8[Tensor, "t h2 w2 3"]:
    """To (height, width), as an image processor would make them."""
    pixels = resize_pixels(rearrange(frames.float(), "t h w c -> t c h w"), size)
    return rearrange(pixels.round().clamp(0, 255).to(torch.uint8), "t c h w -> t h w c").contiguous()


def resize_pixels(frames: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
    """To (height, width); in fp32, since PyTorch knows it in no narrower type on a CPU."""
    return F.interpolate(frames.float(), size, mode="bicubic", antialias=True).to(frames.dtype)
