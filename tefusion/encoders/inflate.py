"""A linear map of one frame becomes one of k frames that gives the same for k equal frames."""

from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn


def inflate(weight: Float[Tensor, "out inputs"], k: int) -> Float[Tensor, "out k*inputs"]:
    """The weight repeated for each of k frames (frame-major input) and divided by k: the mean of the frames."""
    return repeat(weight / k, "out inputs -> out (k inputs)", k=k)


def inflated_linear(inputs: int, k: int, out: int) -> nn.Linear:
    """A linear map over k concatenated frames that starts as the map of one frame: still videos are images."""
    linear = nn.Linear(inputs, out)
    if k > 1:
        linear.weight = nn.Parameter(inflate(linear.weight.detach(), k))
        linear.in_features = k * inputs
    return linear
