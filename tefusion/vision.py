"""VideoEncoder: pixels -> embeds. MotionBench's pseudo-code without the ifs: what differs is the compressor."""

from collections.abc import Callable
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from tefusion.choices import nearest
from tefusion.compressors import Clip, Compressor, create_compressor
from tefusion.encoders import PRESETS, Tower, VisionConfig, ViT
from tefusion.projector import Projector

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # GLM-4V-9B's, which are CLIP's


def pixels(frames: UInt8[Tensor, "*lead h w 3"]) -> Float[Tensor, "*lead 3 h w"]:
    """Frames as a decoder of video gives them -> normalised pixels as a tower takes them."""
    mean, std = (torch.tensor(value, device=frames.device)[:, None, None] for value in (MEAN, STD))
    x = rearrange(frames, "... h w c -> ... c h w").contiguous()  # arithmetic over rows of three is four times slower
    return (x / 255).sub_(mean).div_(std)


def clip_of(x: Tensor, frames: int, grid: tuple[int, int], seconds: Float[Tensor, "_ _"] | None) -> Clip:
    """What a method may know of the videos that `x` is of; where nobody says when, a frame is shown a second."""
    if seconds is None:
        seconds = torch.arange(frames, device=x.device, dtype=torch.float32).expand(len(x), frames)
    elif seconds.shape != (len(x), frames):
        raise ValueError(f"seconds {tuple(seconds.shape)} are not those of {len(x)} videos of {frames} frames")
    return Clip(*grid, seconds)


Build = Callable[[VisionConfig, int], Tower]  # the sizes, and how many frames share the patch map's channels


class VideoEncoder(nn.Module):
    """Normalised pixels of t frames in, (t / k) groups of m embeds out, without boi and eoi.

    `seconds` says when each frame is shown, for the methods that read it; without it a frame is shown a second.
    """

    def __init__(self, tower: Tower, compressor: Compressor, projector: nn.Module, scale: float = 1.0):
        super().__init__()
        self.tower, self.compressor, self.projector, self.scale = tower, compressor, projector, scale

    def forward(
        self, video: Float[Tensor, "b t 3 height width"], seconds: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b g m e"]:
        return self.project(self.encode(video, seconds), seconds)

    def encode(
        self, video: Float[Tensor, "b t 3 height width"], seconds: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b g j h w d"]:
        groups = self.groups(video.shape[1])
        x = self.compressor.pixels(video)
        h, w = self.grid(*x.shape[-2:])
        clip = clip_of(video, video.shape[1], (h, w), seconds)
        x = self.tower.patchify(x)
        x = self.compressor.encode(x, self.tower.blocks_at(h, w), clip)
        x = self.tower.norm(x)[:, :, self.tower.prefix :]
        return rearrange(x, "b (g j) (h w) d -> b g j h w d", g=groups, h=h, w=w)

    def project(
        self, x: Float[Tensor, "b g j h w d"], seconds: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b g m e"]:
        clip = clip_of(x, x.shape[1] * self.compressor.k, (x.shape[3], x.shape[4]), seconds)
        return rearrange(self.compressor.project(x, self.projector, clip), "b g h w e -> b g (h w) e") / self.scale

    def groups(self, frames: int) -> int:
        """How many groups `frames` frames make. Raises ValueError where k does not divide them."""
        return groups_of(frames, self.compressor.k)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across. Raises ValueError where not even one 2x2 merge fits."""
        return grid_of(height, width, self.tower.patch_size)

    def tokens_out(self, frames: int, height: int, width: int) -> int:
        """The decoder tokens that `frames` frames of this size in pixels will cost, before anything runs."""
        h, w = self.grid(height, width)
        return self.groups(frames) * (h // 2) * (w // 2)


def groups_of(frames: int, k: int) -> int:
    if frames == 0 or frames % k:
        raise ValueError(f"{frames} frames do not divide into groups of k = {k}")
    return frames // k


def grid_of(height: int, width: int, patch_size: int) -> tuple[int, int]:
    h, w = height // patch_size, width // patch_size
    if min(h, w) < 2:
        raise ValueError(f"a {height}x{width} frame is smaller than 2x2 patches of {patch_size} pixels")
    return h, w


def create_video_encoder(
    preset: str = "tiny", compressor: str = "none", k: int = 1, *, embed_dim: int | None = None, **options: object
) -> VideoEncoder:
    """A fresh encoder that starts as the image model: widened maps are inflated, so a still video is an image.

    `preset` is a name of `tefusion.encoders.PRESETS`, or "timm:<name>" for any timm ViT. `options` go to the
    compressor.
    """
    config, build = tower_of(preset)
    config = replace(config, embed_dim=embed_dim or config.embed_dim)
    with torch.random.fork_rng(devices=[]):  # one seed gives one tower, whatever the method drew
        method = method_for(config, compressor, k, **options)
    return assemble(config, method, build)


def tower_of(preset: str) -> tuple[VisionConfig, Build]:
    """The sizes of a preset and what builds its tower at these, or at others."""
    if preset.startswith("timm:"):
        from tefusion.encoders.timm_vit import timm_config, timm_tower

        name = preset.removeprefix("timm:")
        return timm_config(name), timm_tower(name)
    if preset in PRESETS:
        return PRESETS[preset], ViT
    raise ValueError(f"encoder {preset!r} is unknown{nearest(preset, [*PRESETS, 'timm:<name>'])}")


def method_for(config: VisionConfig, compressor: str, k: int, **options: object) -> Compressor:
    """The compressor for an encoder of these sizes. Raises ValueError where its blocks cannot serve it."""
    method = create_compressor(
        compressor,
        k=k,
        width=config.width,
        embed_dim=config.embed_dim,
        depth=config.depth,
        heads=config.heads,
        grid=config.grid,
        **options,
    )
    dim = config.width // config.heads
    if method.opens_blocks and not config.open_blocks:
        raise ValueError(
            f"{compressor} reaches inside the blocks, and a timm tower's are closed; known: {', '.join(PRESETS)}"
        )
    if method.opens_blocks and (dim % 2 or dim < 6):
        raise ValueError(f"{compressor} turns pairs of channels by time, row and column: heads of {dim} are too narrow")
    return method


def assemble(config: VisionConfig, method: Compressor, build: Build = ViT) -> VideoEncoder:
    """Tower and projector of these sizes around the compressor, as wide as it asks; `build` makes the tower."""
    tower = build(config, method.in_frames)
    merges = not method.owns_merge
    projector = Projector(config.width, config.embed_dim, config.glu, method.out_frames, merges)
    return VideoEncoder(tower, method, projector, config.scale)
