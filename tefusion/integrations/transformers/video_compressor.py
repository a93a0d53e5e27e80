"""What a compressor adds to a video model: itself, and copies of two maps, widened to read k frames."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from tefusion.compressors import Clip, Compressor
from tefusion.encoders.inflate import inflate
from tefusion.integrations.transformers.host import Host, HostProjector


class VideoCompressor(nn.Module):
    """The part of the result that is ours, and all that `trainable="compressor"` trains.

    The widened maps start as the model's own divided by k, so that a still video is an image; the model's own stay as
    they are, for images.
    """

    def __init__(self, compressor: Compressor, host: Host):
        super().__init__()
        self.compressor = compressor
        self.patches = widened(host.patch_map, compressor.in_frames)
        self.first = widened(host.first_map, compressor.out_frames)

    @property
    def is_nothing(self) -> bool:
        """Whether the compressed model is the model itself."""
        return self.compressor.k == 1 and not list(self.parameters())

    def forward(self, host: Host, pixels: Any, sizes: Tensor | None) -> Any:
        embeds: list[Tensor] = []
        for index, video in enumerate(host.videos(pixels, sizes)):
            embeds += self.embeds(host, video, host.grid(video, sizes, index))
        return host.answer(embeds)

    def embeds(self, host: Host, video: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """Of each video of the batch (tokens, e). The last frame is repeated until the last group is full."""
        groups = self.groups(video.shape[1])
        missing = groups * self.compressor.k - video.shape[1]
        video = torch.cat([video, video[:, -1:].expand(-1, missing, *video.shape[2:])], 1) if missing else video
        seconds = torch.arange(video.shape[1], device=video.device, dtype=torch.float32).expand(len(video), -1)
        clip = Clip(*grid, seconds=seconds)
        x = host.embed(self.compressor.pixels(video), self.patches, grid)
        x = self.compressor.encode(x, host.blocks(grid), clip)
        x = rearrange(host.features(x, grid), "b (g j) h w d -> b g j h w d", g=groups)
        x = self.compressor.project(x, HostProjector(host, self.first), clip)
        if tuple(x.shape[2:4]) != host.merged(grid):
            raise ValueError(
                f"{type(self.compressor).__name__} merges space by itself, and this model does it elsewhere: it made "
                f"{x.shape[2]}x{x.shape[3]} tokens a group, the model's own are {'x'.join(map(str, host.merged(grid)))}"
            )
        return list(rearrange(x, "b g h w e -> b (g h w) e"))

    def groups(self, steps: int) -> int:
        return -(-steps // self.compressor.k)


@torch.no_grad()
def widened(module: Any, frames: int) -> nn.Linear | None:
    """The map over `frames` concatenated inputs that gives the mean of what `module` gives for each."""
    if frames == 1:
        return None
    weight = module.weight.flatten(1)
    bias = module.bias is not None
    wide = nn.Linear(frames * weight.shape[1], len(weight), bias, device=weight.device, dtype=weight.dtype)
    wide.weight.copy_(inflate(weight, frames))
    if bias:
        wide.bias.copy_(module.bias)
    return wide
