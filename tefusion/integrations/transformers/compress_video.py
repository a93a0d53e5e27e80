"""A compressor of the zoo inside a whole video model of transformers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tefusion.choices import nearest
from tefusion.compressors import COMPRESSORS, Compressor, create_compressor
from tefusion.integrations.transformers.calls import replace_attribute
from tefusion.integrations.transformers.host import Host
from tefusion.integrations.transformers.hosts import find_owner, host_of
from tefusion.integrations.transformers.placeholders import Placeholders, shorten, shortened
from tefusion.integrations.transformers.video_compressor import VideoCompressor

TRAINABLE = ("all", "compressor")


class CompressedVideo:
    """What `compress_video_` made of a model."""

    def __init__(self, model: nn.Module, owner: Any):
        self.model, self.owner = model, owner

    @property
    def module(self) -> VideoCompressor:
        return self.owner.video_compressor

    @property
    def k(self) -> int:
        return self.module.compressor.k

    def num_video_tokens(self, frames: int, height: int, width: int) -> int:
        """The placeholders of one video of `frames` frames of this size in pixels, as the processor leaves them."""
        host = host_of(self.owner)
        if frames < 1:
            raise ValueError(f"a video has at least one frame, got {frames}")
        h, w = host.merged(host.patches_of(height, width))
        return self.module.groups(-(-frames // host.frames_per_step)) * h * w + host.extra_tokens

    def shorten(self, batch: Mapping[str, Any], pad_id: int = 0, left: bool = True) -> dict[str, Any]:
        """What the model's own processor made, with the placeholders of the compressed videos.

        `pad_id` and `left` say how rows of different length are padded. Raises ValueError where the prompt's
        placeholders are not those of its videos.
        """
        if batch.get("pixel_values_videos") is None or self.k == 1:
            return dict(batch)
        host = host_of(self.owner)
        marked = host.video_tokens(batch)
        keep = shorten(marked, placeholders(host, batch), self.k, host.steps_apart)
        return {**without_mask(batch), **shortened(batch, keep, pad_id, left)}


def compress_video_(
    model: nn.Module, compressor: str, k: int, *, trainable: str = "all", **options: Any
) -> CompressedVideo:
    """Videos of `model` go through a compressor of the zoo, in place; images keep their path.

    `trainable` is "all" or "compressor", which freezes everything else. `options` are the compressor's own, and
    `grid`, the patches down and across a frame, where a method needs it and the model takes any size. k counts the
    model's time steps, of which one is two frames in the Qwens. Raises ValueError on a model or compressor that is
    not known, on a model that is compressed already, and on sizes that are not the model's.
    """
    owner = find_owner(model)
    if trainable not in TRAINABLE:
        raise ValueError(f"trainable must be all or compressor, got {trainable!r}{nearest(trainable, TRAINABLE)}")
    if hasattr(owner, "video_compressor"):
        raise ValueError(f"{type(model).__name__} already has a compressor, {described(owner)}")
    host = host_of(owner)
    module = VideoCompressor(method_for(host, compressor, k, options), host)
    like = host.first_map.weight
    owner.video_compressor = module.to(device=like.device, dtype=like.dtype)
    settings = {
        "compressor": compressor,
        "k": k,
        "options": {**options, **({"grid": list(options["grid"])} if "grid" in options else {})},
    }
    parts: list[Any] = [model, owner]
    for part in parts:
        part.config.video_compressor = settings
    install(owner)
    if trainable == "compressor":
        model.requires_grad_(False)
        module.requires_grad_(True)
    return CompressedVideo(model, owner)


def described(owner: Any) -> str:
    compressor = owner.video_compressor.compressor
    return f"{type(compressor).__name__} with k = {compressor.k}"


def method_for(host: Host, name: str, k: int, options: Mapping[str, Any]) -> Compressor:
    sizes = host.sizes
    for size in ("width", "embed_dim", "depth", "heads"):
        if size in options and options[size] != getattr(sizes, size):
            raise ValueError(f"{size} is {getattr(sizes, size)} in this model, got {options[size]!r}")
    own = {name: value for name, value in options.items() if name not in ("width", "embed_dim", "depth", "heads")}
    if name in COMPRESSORS and COMPRESSORS[name].control:
        raise ValueError(f"{name} is a control: give the model itself fewer frames, or smaller ones")
    grid = own.pop("grid", None) or sizes.grid
    merges = name in COMPRESSORS and COMPRESSORS[name].owns_merge  # then its output goes where the first map's goes
    method = create_compressor(
        name,
        k=k,
        width=sizes.width,
        embed_dim=sizes.hidden if merges else sizes.embed_dim,
        depth=sizes.depth,
        heads=sizes.heads,
        grid=None if grid is None else (grid[0], grid[1]),
        **own,
    )
    if host.takes_patches and type(method).pixels is not Compressor.pixels and method.in_frames != method.k:
        raise ValueError(f"{name} needs whole frames, and this model's processor has cut them into patches")
    return method


def install(owner: Any) -> None:
    """The owner's videos go through `owner.video_compressor`, and its positions are counted in groups."""
    if owner.video_compressor.compressor.k == 1 and not list(owner.video_compressor.parameters()):
        return  # the model itself
    replace_attribute(owner, "get_video_features", VideoFeatures(owner))
    if hasattr(type(owner), "get_rope_index"):
        replace_attribute(owner, "get_rope_index", GroupPositions(owner, owner.get_rope_index))
    owner.register_forward_pre_hook(check_context, with_kwargs=True)


@dataclass(frozen=True)
class VideoFeatures:
    owner: Any

    def __call__(self, pixel_values_videos: Any, video_grid_thw: Tensor | None = None, *_: Any, **__: Any) -> Any:
        return self.owner.video_compressor(host_of(self.owner), pixel_values_videos, video_grid_thw)


@dataclass(frozen=True)
class GroupPositions:
    """The model's own position ids of a video that has one time step a group, each k times as long."""

    owner: Any
    method: Callable[..., tuple[Tensor, Tensor]]

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        module = self.owner.video_compressor
        if (grid := kwargs.get("video_grid_thw")) is not None:
            groups = [[module.groups(t), h, w] for t, h, w in grid.tolist()]
            kwargs["video_grid_thw"] = torch.tensor(groups, device=grid.device)
            if "second_per_grid_ts" in inspect.signature(type(self.owner).get_rope_index).parameters:
                seconds = kwargs.get("second_per_grid_ts")
                seconds = [1.0] * len(groups) if seconds is None else seconds  # the model's own default
                kwargs["second_per_grid_ts"] = [second * module.compressor.k for second in seconds]
        return self.method(*args, **kwargs)


def without_mask(batch: Mapping[str, Any]) -> dict[str, Any]:
    """VideoLLaMA3's own dropping of tokens would not know the groups."""
    mask = batch.get("video_compression_mask")
    if mask is not None and not torch.as_tensor(mask).all():
        raise ValueError("the processor has dropped tokens of the videos already: use_token_compression must be False")
    return {name: value for name, value in batch.items() if name != "video_compression_mask"}


def placeholders(host: Host, batch: Mapping[str, Any]) -> list[Placeholders]:
    """Of each video, as the model's own processor writes them."""
    if (grid := batch.get("video_grid_thw")) is not None:
        rows = grid.tolist() if isinstance(grid, Tensor) else grid
        return [Placeholders(t, h * w // 4, host.extra_tokens) for t, h, w in rows]
    found = []
    for video in batch["pixel_values_videos"]:
        h, w = host.merged(host.patches_of(*video.shape[-2:]))
        found.append(Placeholders(len(video), h * w, host.extra_tokens))
    return found


def check_context(owner: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises ValueError for a prompt that is longer than the decoder's context."""
    ids = args[0] if args else kwargs.get("input_ids")
    longest = getattr(owner.config.text_config, "max_position_embeddings", None)
    if ids is None or longest is None or kwargs.get("pixel_values_videos") is None or ids.shape[1] <= longest:
        return
    over, k = ids.shape[1] - longest, owner.video_compressor.compressor.k
    in_video = max(map(sum, host_of(owner).video_tokens({**kwargs, "input_ids": ids})))
    left = in_video - over
    fits = f"k = {-(-k * in_video // left)} would fit" if left > 0 else "no k would make it fit"
    raise ValueError(f"the prompt is {over} tokens longer than the decoder's context of {longest}; {fits}")
