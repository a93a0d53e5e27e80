"""Frames of another size, as an image processor would make them."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def resize(frames: Float[Tensor, "n c height width"], size: tuple[int, int]) -> Float[Tensor, "n c height2 width2"]:
    """Bicubic with antialiasing; in fp32, since PyTorch knows it in no narrower type on a CPU."""
    made = F.interpolate(frames.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return made.to(frames.dtype)
