"""How many frames share attention in the call that is running."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


class Calls:
    """Read where a tower is entered and nowhere else: what a checkpoint computes again gets the number from its input's
    shape or from an argument, so it cannot see another call's.
    """

    def __init__(self, k: int):
        self.k = k  # of videos
        self.now: int | None = None

    @property
    def frames(self) -> int:
        return self.k if self.now is None else self.now

    @contextmanager
    def of(self, frames: int) -> Iterator[None]:
        before, self.now = self.now, frames
        try:
            yield
        finally:
            self.now = before


def take_images_alone(model: nn.Module, calls: Calls) -> list[Callable[[], None]]:
    """The images of a model keep k = 1 while its videos are grouped. Calling what it returns takes that back; a model
    that does not tell images from videos by two methods is left as it is."""
    owner: Any = next((part for part in model.modules() if has_both(part)), None)
    if owner is None:
        return []
    images, videos = owner.get_image_features, owner.get_video_features
    return [
        replace_attribute(owner, "get_image_features", ImageFeatures(images, calls)),
        replace_attribute(owner, "get_video_features", VideoFeatures(videos, calls)),
    ]


@dataclass(frozen=True)
class Features:
    """A model's own method, within a call of ours. `generate` reads its signature."""

    method: Callable[..., Any]
    calls: Calls

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.method)


class ImageFeatures(Features):
    """A model's own method may serve its videos too: whoever was asked first decides."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.calls.of(1 if self.calls.now is None else self.calls.now):
            return self.method(*args, **kwargs)


class VideoFeatures(Features):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        grid = args[1] if len(args) > 1 else kwargs.get("video_grid_thw")
        check_videos(self.calls.k, args[0] if args else kwargs.get("pixel_values_videos"), grid)
        with self.calls.of(self.calls.k):
            return self.method(*args, **kwargs)


def check_videos(k: int, pixels: Tensor | None, grid: Tensor | None) -> None:
    """Raises ValueError for a video whose last group would take frames of the next one."""
    lengths = grid[:, 0].tolist() if grid is not None else [pixels.shape[1]] if pixels is not None else []
    for frames in lengths:
        if frames % k:
            raise ValueError(f"a video of {frames} frames does not divide into groups of k = {k}")


def replace_attribute(module: nn.Module, name: str, value: Any) -> Callable[[], None]:
    """On this one instance; calling what it returns brings back what was there before."""
    before = module.__dict__.get(name)
    module.__dict__[name] = value

    def restore() -> None:
        if before is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before

    return restore


def has_both(module: nn.Module) -> bool:
    """Whether this is the innermost module with both methods: a head's only pass the call on."""
    both = all(hasattr(type(module), name) for name in ("get_image_features", "get_video_features"))
    return both and not any(has_both(child) for child in module.children())
