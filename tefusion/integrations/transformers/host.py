"""A video model of transformers as the corridor sees it: patches, blocks, norm, projector. One subclass a family."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from tefusion.integrations.transformers.placeholders import Placeholders, as_lists

Visual = tuple[str, int]  # "video" or "image", and its pictures


@dataclass(frozen=True)
class Sizes:
    """What `create_compressor` asks; `hidden` is the width between the projector's first map and the rest."""

    width: int
    embed_dim: int
    hidden: int
    depth: int
    heads: int
    grid: tuple[int, int] | None = None  # patches down and across, where the model has one size of frame


class Host:
    """`owner` is the module that has `get_video_features`. A host holds no parameters and lives for one call."""

    modality: ClassVar[str] = "video"  # what the model calls videos, in get_video_features
    pixels: ClassVar[str] = "pixel_values_videos"
    frames_per_step: ClassVar[int] = 1  # frames that the model's own patches join already
    extra_tokens: ClassVar[int] = 0  # of each video, beside those of its groups
    steps_apart: ClassVar[bool] = False  # whether text stands between the placeholders of two time steps
    takes_patches: ClassVar[bool] = False  # whether the processor has cut the frames into patches

    def __init__(self, owner: Any):
        self.owner = owner

    @property
    def sizes(self) -> Sizes:
        raise NotImplementedError

    @property
    def patch_map(self) -> Any:
        """The model's convolution over the patches of one time step."""
        raise NotImplementedError

    @property
    def first_map(self) -> Any:
        """The projector's first map with weights."""
        raise NotImplementedError

    def found(self, batch: Mapping[str, Any], visuals: Sequence[Visual] | None = None) -> list[Placeholders]:
        """Of each video of a batch, as the model's own processor writes them."""
        videos = batch.get(self.pixels)
        found = []
        for video in () if videos is None else videos:
            h, w = self.merged(self.patches_of(*video.shape[-2:]))
            found.append(Placeholders(len(video), h * w, self.extra_tokens))
        return found

    def held(self, inputs: Mapping[str, Any], k: int) -> list[Placeholders]:
        """Of each video that the compressed model takes."""
        return [video.grouped(k) for video in self.found(inputs)]

    def written(self, replacements: Sequence[tuple[str, str]], image_token: str) -> list[Visual] | None:
        """The visuals of a prompt, of which the processor says what it has written for each; None where a batch
        tells them itself."""
        return None

    def video_tokens(self, batch: Mapping[str, Any], found: Sequence[Placeholders]) -> list[list[bool]]:
        """Which tokens of a batch's `input_ids` stand for videos."""
        token = getattr(self.owner.config, "video_token_id", None)
        token = self.owner.config.video_token_index if token is None else token
        return [[value == token for value in row] for row in as_lists(batch["input_ids"])]

    def inputs(self, batch: Mapping[str, Any], found: Sequence[Placeholders]) -> dict[str, Any]:
        """A batch of the processor as the compressed model takes it, but for the length of its prompts."""
        return dict(batch)

    def reordered(self, inputs: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
        """What of the inputs is videos', each as often as `order` names it and where."""
        videos = inputs[self.pixels]
        same = isinstance(videos, Tensor)
        return {self.pixels: videos[list(order)] if same else [videos[i] for i in order]}

    def enter(self, compress: Any, own: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """In place of the method by which the model makes features of its videos, which is `own`."""
        return compress(self, arguments[self.pixels], arguments.get("video_grid_thw"))

    def videos(self, pixels: Any, grid: Tensor | None) -> list[Tensor]:
        """Batches of videos of one size and length, (b, t, channels, height, width), in the order of the prompt."""
        raise NotImplementedError

    def grid(self, video: Tensor, sizes: Tensor | None, index: int) -> tuple[int, int]:
        """Patches down and across a frame of the batch `index` of `videos`."""
        raise NotImplementedError

    def embed(self, x: Tensor, patches: nn.Linear | None, grid: tuple[int, int]) -> Tensor:
        """(b, s, channels, height, width) -> (b, s, tokens, width)"""
        raise NotImplementedError

    def blocks(self, grid: tuple[int, int]) -> nn.ModuleList:
        """The tower's layers as blocks over (rows, frames, tokens, width)."""
        raise NotImplementedError

    def features(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the blocks leave -> (b, s, h, w, width), rows and columns as they lie in the frame."""
        raise NotImplementedError

    def gather(self, x: Tensor) -> Tensor:
        """(lead, h, w, width) -> (lead, h2, w2, what the projector's first map reads)"""
        return x

    def tail(self, x: Tensor) -> Tensor:
        """The projector behind its first map."""
        raise NotImplementedError

    def pool(self, x: Tensor) -> Tensor:
        """(lead, h, w, e) -> (lead, h2, w2, e), behind the projector."""
        return x

    def merged(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Decoder tokens down and across, of a frame with this many patches."""
        return grid[0] // 2, grid[1] // 2

    def patches_of(self, height: int, width: int) -> tuple[int, int]:
        """Pixels as the processor gives them -> patches. Raises ValueError for a size that the model cannot take."""
        raise NotImplementedError

    def answer(self, embeds: list[Tensor]) -> Any:
        """Of each video its (tokens, e) -> what `get_video_features` returns."""
        raise NotImplementedError


class Merge(nn.Module):
    """The projector up to its first map, whose widened copy reads several frames' features, one after another."""

    def __init__(self, host: Host, widened: nn.Linear | None):
        super().__init__()
        self.host, self.widened = host, widened

    def forward(self, x: Tensor) -> Tensor:
        if self.widened is None:
            return linear(self.host.first_map, self.host.gather(x))
        width = self.host.sizes.width
        frames = rearrange(x, "... h w (k d) -> k ... h w d", d=width)
        return self.widened(torch.cat([self.host.gather(frame) for frame in frames], -1))


class Tail(nn.Module):
    def __init__(self, host: Host):
        super().__init__()
        self.host = host

    def forward(self, x: Tensor) -> Tensor:
        return self.host.pool(self.host.tail(x))


class HostProjector(nn.Module):
    """The model's own projector with the two halves that compressors know."""

    def __init__(self, host: Host, widened: nn.Linear | None):
        super().__init__()
        self.merge, self.glu = Merge(host, widened), Tail(host)

    def forward(self, x: Tensor) -> Tensor:
        return self.glu(self.merge(x))


def linear(module: Any, x: Tensor) -> Tensor:
    """A linear map, or a convolution with kernel = stride over its flattened input (channels first)."""
    if isinstance(module, nn.Linear):
        return module(x)
    return nn.functional.linear(x, module.weight.flatten(1), module.bias)


def mentions(method: Any, name: str) -> bool:
    """Whether a method of the installed version uses this attribute: who adds what has moved between versions."""
    return name in inspect.unwrap(method).__code__.co_names


def raster(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(.., tokens, d), merged 2x2 blocks one after another -> (.., h, w, d)"""
    return rearrange(x, "... (h w p q) d -> ... (h p) (w q) d", h=grid[0] // 2, w=grid[1] // 2, p=2, q=2)


def blocks_of_four(x: Tensor) -> Tensor:
    """(.., h, w, d) -> (.., h / 2, w / 2, 4 d), as the Qwens concatenate them"""
    return rearrange(x, "... (h p) (w q) d -> ... h w (p q d)", p=2, q=2)
