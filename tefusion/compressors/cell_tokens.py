"""Cells of k frames x 2 x 2 patches: each becomes one token, as wide as a feature, that fills its cell again."""

from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor


def cells(x: Float[Tensor, "b g k h w d"]) -> Float[Tensor, "b g h2 w2 cell d"]:
    """The 4k tokens of each cell. An odd grid drops its last row and column, as the projector's merge does."""
    h, w = x.shape[3] // 2 * 2, x.shape[4] // 2 * 2
    return rearrange(x[..., :h, :w, :], "b g k (h p) (w q) d -> b g h w (k p q) d", p=2, q=2)


def spread(x: Float[Tensor, "b g h2 w2 d"]) -> Float[Tensor, "b g h w d"]:
    """One token at the four places of its cell: there the merge's kernels add up, and an image model's keep their
    meaning."""
    return repeat(x, "b g h w d -> b g (h p) (w q) d", p=2, q=2)
