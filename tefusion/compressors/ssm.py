"""ssm (STORM, 2503.04130; BIMBA, 2503.09590): a selective scan of the clip, to and fro; the mean over k frames.

Mamba-2's mixer (2405.21060) on all tokens in raster order, frame after frame, added to what it read; without Mamba's
short convolution, which would mix the end of a row with the start of the next. Its last map starts at zero: the scan
starts as the identity, and a still video is an image.
"""

from math import expm1, gcd, log

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.compressors.base import Clip, Compressor
from tefusion.kernels import Linear, selective_scan

HEAD = 64  # channels of a head, as far as they divide the width
FADES = 1.0, 16.0  # Mamba-2's range of -a at the start
STEPS = 1e-3, 0.1  # and of dt, on a geometric scale


class Scan(nn.Module):
    """One direction."""

    def __init__(self, width: int, state: int):
        super().__init__()
        self.dim = gcd(width, HEAD)
        heads = width // self.dim
        self.dt, self.bc = Linear(width, heads), Linear(width, 2 * state, bias=False)
        self.a_log = nn.Parameter(torch.empty(heads).uniform_(*FADES).log())
        self.skip = nn.Parameter(torch.ones(heads, 1))
        first, last = STEPS
        steps = [first * (last / first) ** (head / max(1, heads - 1)) for head in range(heads)]
        with torch.no_grad():
            self.dt.bias.copy_(torch.tensor([log(expm1(step)) for step in steps]))  # softplus gives these steps back

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        heads = rearrange(x, "b l (h dim) -> b l h dim", dim=self.dim)
        b, c = self.bc(x).chunk(2, dim=-1)
        y = selective_scan(heads, F.softplus(self.dt(x)), -self.a_log.exp(), b, c)
        return rearrange(y + self.skip * heads, "b l h dim -> b l (h dim)")


class SSM(Compressor):
    source = "STORM 2503.04130"
    stage = "after"
    reach = "clip"
    order_sensitive = True
    adds_module = True

    def __init__(self, k: int, width: int, state: int = 16):
        super().__init__(k)
        self.norm = nn.LayerNorm(width)
        self.inner, self.gate = Linear(width, width, bias=False), Linear(width, width, bias=False)
        self.onward, self.back = Scan(width, state), Scan(width, state)
        self.out = Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        _, groups, _, h, w, _ = x.shape
        x = self.mix(rearrange(x, "b g k h w d -> b (g k h w) d"))
        x = reduce(x, "b (g k h w) d -> b g h w d", "mean", g=groups, h=h, w=w)
        return projector(x)

    def mix(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        y = self.norm(x)
        inner = self.inner(y)
        both = self.onward(inner) + self.back(inner.flip(1)).flip(1)
        return x + self.out(F.silu(self.gate(y)) * both)
