"""A video model of transformers as the corridor sees it: patches, blocks, norm, projector. One subclass a family."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn


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

    def video_tokens(self, batch: Mapping[str, Any]) -> list[list[bool]]:
        """Which tokens of a batch's `input_ids` stand for videos."""
        token = getattr(self.owner.config, "video_token_id", None)
        token = self.owner.config.video_token_index if token is None else token
        ids = batch["input_ids"]
        return [[value == token for value in row] for row in (ids.tolist() if isinstance(ids, Tensor) else ids)]

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
