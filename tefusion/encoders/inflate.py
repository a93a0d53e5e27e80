"""A linear map of one frame becomes one of k frames that gives the same for k equal frames."""

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.kernels import Linear


def inflate(weight: Float[Tensor, "out inputs *kernel"], k: int) -> Float[Tensor, "out {k}*inputs *kernel"]:
    """The weight repeated for each of k frames (frame-major input) and divided by k: the mean of the frames."""
    return repeat(weight / k, "out inputs ... -> out (k inputs) ...", k=k)


def inflated_linear(inputs: int, k: int, out: int) -> Linear:
    """A linear map over k concatenated frames that starts as the map of one frame: still videos are images."""
    linear = Linear(inputs, out)
    if k > 1:
        linear.weight = nn.Parameter(inflate(linear.weight.detach(), k))
        linear.in_features = k * inputs
    return linear


@torch.no_grad()
def inflated_conv(conv: nn.Conv2d, k: int) -> nn.Conv2d:
    """The same convolution, now over k frames that share the channel axis."""
    conv.weight = nn.Parameter(inflate(conv.weight, k))
    conv.in_channels *= k
    return conv
