"""te_fusion (MotionBench, 2501.02955, section 4): k frames are one sequence for every self-attention of the encoder.

Read out by one convolution with kernel = stride = (k, 2, 2), which is the projector's merge over concatenated frames.
The class token stays one a frame. v1 adds a temporal position embedding of k rows, v2's prose does not mention one:
here it is learned, added to every token of a frame, and zero at the start, so that a still video is an image.

Both are settings. `readout` is one of `READOUTS`. `temporal_position` may also be none; sincos, of the seconds since
the group's first frame, as Kimi K2.5's MoonViT3d adds it with readout=mean at a frame a second; or rope3d, which turns
queries and keys by seconds, row and column. With these two the same frame at two moments is not the same, so that a
still video is no image. One frame alone has no time: at k = 1 every setting is the image model.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.choices import nearest
from tefusion.compressors.base import Clip, Compressor, run_blocks
from tefusion.compressors.readout import READOUTS
from tefusion.compressors.sincos import sincos

POSITIONS = ("none", "learned", "sincos", "rope3d")


class TEFusion(Compressor):
    source = "MotionBench 2501.02955"
    stage = "inside"

    def __init__(
        self,
        k: int,
        width: int,
        readout: str = "concat",
        temporal_position: str = "learned",
        position_std: float = 0.0,
    ):
        super().__init__(k)
        for name, value, known in (
            ("readout", readout, READOUTS),
            ("temporal_position", temporal_position, POSITIONS),
        ):
            if value not in known:
                raise ValueError(f"te_fusion: {name} {value!r} is unknown{nearest(value, known)}")
        self.readout = READOUTS[readout](k, width)
        self.out_frames = self.readout.out_frames
        self.temporal_position = temporal_position if k > 1 or temporal_position == "learned" else "none"
        if temporal_position == "learned":
            self.position = nn.Parameter(position_std * torch.randn(k, 1, width))
        self.order_sensitive = readout in ("concat", "last") or temporal_position != "none"
        self.opens_blocks = self.temporal_position == "rope3d"
        if self.temporal_position in ("sincos", "rope3d"):
            self.never_still = "each moment has a position of its own"

    def encode(self, x: Float[Tensor, "b s n d"], blocks: nn.ModuleList, clip: Clip) -> Float[Tensor, "b s2 n d"]:
        x = rearrange(x, "b (g k) n d -> b g k n d", k=self.k)
        if self.temporal_position == "learned":
            x = x + self.position
        elif self.temporal_position == "sincos":
            x = x + sincos(since_first(clip, self.k), x.shape[-1]).to(x.dtype)[:, :, :, None]
        x = self.readout.join(x)
        frames = x.shape[2]
        x = self.run(rearrange(x, "b g k n d -> b (g k) n d"), blocks, frames, clip)
        return rearrange(
            self.readout.leave(rearrange(x, "b (g k) n d -> b g k n d", k=frames)), "b g j n d -> b (g j) n d"
        )

    def run(
        self, x: Float[Tensor, "b s n d"], blocks: nn.ModuleList, frames: int, clip: Clip
    ) -> Float[Tensor, "b s n d"]:
        """The blocks over groups of `frames`: where the other methods of the family differ."""
        turned = self.positions(x.shape[2], frames, clip) if self.temporal_position == "rope3d" else None
        return run_blocks(x, blocks, frames, turned)

    def positions(self, tokens: int, frames: int, clip: Clip) -> Float[Tensor, "rows length 3"]:
        """(seconds, row, column) of every token; prefix tokens have row and column 0, registers their group's mean
        second."""
        seconds = since_first(clip, self.k)
        added = seconds.mean(2, keepdim=True).expand(-1, -1, frames - self.k)
        seconds = rearrange(torch.cat([seconds, added], dim=2), "b g k -> (b g) k")
        down, across = torch.arange(clip.height).to(seconds), torch.arange(clip.width).to(seconds)
        grid = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).flatten(0, 1)
        grid = nn.functional.pad(grid, (0, 0, tokens - len(grid), 0))
        places = torch.cat(
            [
                repeat(seconds, "r f -> r f n 1", n=tokens),
                repeat(grid, "n two -> r f n two", r=seconds.shape[0], f=frames),
            ],
            dim=-1,
        )
        return rearrange(places, "r f n three -> r (f n) three")

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        return projector(self.readout(x))


def since_first(clip: Clip, k: int) -> Float[Tensor, "b g k"]:
    """Seconds from each group's first frame."""
    seconds = rearrange(clip.seconds, "b (g k) -> b g k", k=k)
    return seconds - seconds[:, :, :1]
