"""A compressor of the zoo inside a whole video model of transformers."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tefusion.choices import nearest
from tefusion.compressors import COMPRESSORS, Compressor, create_compressor
from tefusion.integrations.transformers.beams import Beams
from tefusion.integrations.transformers.calls import replace_attribute
from tefusion.integrations.transformers.host import Host, Visual
from tefusion.integrations.transformers.hosts import find_owner, host_of
from tefusion.integrations.transformers.placeholders import Placeholders, lengths_of, mask_of, shorten, shortened
from tefusion.integrations.transformers.video_compressor import VideoCompressor

TRAINABLE = ("all", "compressor")
EXPAND = "_expand_inputs_for_generation"  # where transformers repeats a row's inputs for its beams


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

    def shorten(
        self,
        batch: Mapping[str, Any],
        pad_id: int = 0,
        left: bool = True,
        visuals: Sequence[Visual] | None = None,
    ) -> dict[str, Any]:
        """What the model's own processor made, as the compressed model takes it: the placeholders of its videos.

        `pad_id` and `left` say how rows of different length are padded. `visuals`: what each image and video of the
        prompts is, in their order, and its pictures, as in [("video", 8), ("image", 1)]; only for InternVL and
        SmolVLM, to which a video is a row of pictures. Raises ValueError where the prompt's placeholders are not those
        of its videos, and for a prompt that is longer than the decoder's context.
        """
        host = host_of(self.owner)
        found = [] if self.module.is_nothing else host.found(batch, visuals)
        if not any(visual.video for visual in found):
            return dict(batch)
        keep = shorten(host.video_tokens(batch, found), found, self.k, host.steps_apart)
        check_context(host, batch, found, self.k)
        return {**host.inputs(batch, found), **shortened(batch, keep, pad_id, left)}


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
    if hasattr(model, EXPAND):
        replace_attribute(model, EXPAND, Beams(owner, getattr(model, EXPAND)))
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
    if owner.video_compressor.is_nothing:
        return
    name = f"get_{host_of(owner).modality}_features"
    replace_attribute(owner, name, VideoFeatures(owner, getattr(owner, name)))
    if hasattr(type(owner), "get_rope_index"):
        replace_attribute(owner, "get_rope_index", GroupPositions(owner, owner.get_rope_index))
    owner.register_forward_pre_hook(check_prompt, with_kwargs=True)


@dataclass(frozen=True)
class VideoFeatures:
    """`generate` reads the signature of the model's own method, and hands what this returns to the forward."""

    owner: Any
    method: Callable[..., Any]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        host, compress = host_of(self.owner), self.owner.video_compressor
        given = dict(inspect.signature(self.method).bind_partial(*args, **kwargs).arguments)
        arguments = {host.pixels: given.pop(next(iter(given))), **given.pop("kwargs", {}), **given}
        output = host.enter(compress, self.method, arguments)
        output.groups = host.held(arguments, compress.compressor.k)
        return output


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


def check_prompt(owner: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Of a prompt that comes to the model itself, whoever wrote it."""
    ids = args[0] if args else kwargs.get("input_ids")
    longest = context_of(owner)
    if ids is None or longest is None or ids.shape[1] <= longest:
        return
    host, k = host_of(owner), owner.video_compressor.compressor.k
    encoded = (kwargs.get("mm_encoder_outputs") or {}).get(host.modality)
    found = host.held(kwargs, k) if encoded is None else encoded.groups
    if any(visual.video for visual in found):
        check_context(host, {**kwargs, "input_ids": ids}, found, 1)


def context_of(owner: Any) -> int | None:
    return getattr(owner.config.text_config, "max_position_embeddings", None)


def check_context(host: Host, batch: Mapping[str, Any], found: Sequence[Placeholders], group: int) -> None:
    """Raises ValueError for a prompt that is longer than the decoder's context once `group` of the steps that are
    `found` in it are one."""
    longest = context_of(host.owner)
    if longest is None:
        return
    compressor = host.owner.video_compressor.compressor
    marked, mask = host.video_tokens(batch, found), mask_of(batch)

    def length(steps: int) -> int:
        return max(lengths_of(shorten(marked, found, steps, host.steps_apart), mask))

    if (over := length(group) - longest) <= 0:
        return
    most = max(visual.steps for visual in found if visual.video)
    groups = {steps: steps * compressor.k // group for steps in range(group + 1, most + 1)}
    fits = (k for steps, k in groups.items() if k in type(compressor).valid_k and length(steps) <= longest)
    best = next(fits, None)
    raise ValueError(
        f"the prompt is {over} tokens longer than the decoder's context of {longest}; "
        f"{'no k would make it fit' if best is None else f'k = {best} would fit'}"
    )
