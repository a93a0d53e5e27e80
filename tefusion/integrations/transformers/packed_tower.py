"""Towers that see all frames of a call as one packed sequence: attention stays inside the segments of `cu_seqlens`.

A group is one segment. The tower takes its segments as an argument, so nothing in it is replaced. k counts the grid's
time steps, of which one is two frames where the tower's patches are two frames deep (the Qwens').
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tefusion.integrations.transformers.calls import Calls


@dataclass(frozen=True)
class PackedTower:
    """`windows`: some blocks attend inside windows, which then reach over the group's frames (Qwen2.5-VL).
    `frame_rows`: the grid has a row for each frame, not for each video (GLM-4.1V)."""

    windows: bool = False
    frame_rows: bool = False

    def install(self, tower: Any, calls: Calls) -> list[Callable[[], None]]:
        hooks = [tower.register_forward_pre_hook(Segments(calls, self), with_kwargs=True)]
        if self.frame_rows:
            hooks.append(tower.embeddings.register_forward_pre_hook(lengths_of_frames))
        return [hook.remove for hook in hooks]


@dataclass(frozen=True)
class Segments:
    calls: Calls
    tower: PackedTower

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        k = self.calls.frames
        if k == 1:
            return None
        grid = grid_of(module, args, kwargs)
        frames = frames_of_groups(grid, k) if self.tower.frame_rows else grid
        kwargs = {**kwargs, "cu_seqlens": boundaries(group_lengths(frames, k), grid)}
        if self.tower.windows:
            kwargs |= grouped_windows(module, grid, k)
        return args, kwargs


def grid_of(tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return inspect.signature(type(tower).forward).bind_partial(tower, *args, **kwargs).arguments["grid_thw"]


def group_lengths(grid: Tensor, k: int) -> list[int]:
    """Tokens of each group; a grid of one time step is an image, and a group of its own."""
    lengths = []
    for t, h, w in grid.tolist():
        if t > 1 and t % k:
            raise ValueError(f"{t} time steps do not divide into groups of k = {k}")
        lengths += [k * h * w] * (t // k) if t > 1 else [h * w]
    return lengths


def boundaries(lengths: list[int], grid: Tensor) -> Tensor:
    return pad(torch.tensor(lengths, device=grid.device).cumsum(0, dtype=torch.int32), (1, 0))


def frames_of_groups(grid: Tensor, k: int) -> Tensor:
    """Rows of single frames -> a row of k time steps for each group."""
    if len(grid) % k:
        raise ValueError(f"{len(grid)} frames do not divide into groups of k = {k}")
    groups = grid.reshape(-1, k, 3)
    if (groups != groups[:, :1]).any():
        raise ValueError(f"a group of k = {k} frames holds frames of different sizes, which this tower cannot take")
    return torch.cat([groups[:, 0, :1] * k, groups[:, 0, 1:]], -1)


def lengths_of_frames(module: nn.Module, args: tuple) -> tuple:
    """Position embeddings are each frame's: their lengths come from the frames' shapes, not from the segments."""
    embeddings, _, shapes, *rest = args
    return (embeddings, shapes.prod(-1), shapes, *rest)


def grouped_windows(tower: Any, grid: Tensor, k: int) -> dict[str, Tensor]:
    """The order in which a group's frames lie window by window, and where its windows end."""
    side = tower.window_size // tower.spatial_merge_size // tower.patch_size  # merged tokens along a window
    order, lengths, first = [], [], 0
    for t, h, w in grid.tolist():
        h, w = h // tower.spatial_merge_size, w // tower.spatial_merge_size
        frames = k if t > 1 else 1
        index = first + torch.arange(t * h * w, device=grid.device).reshape(t // frames, frames, h, w)
        for group in index:
            windows = [part for rows in group.split(side, 1) for part in rows.split(side, 2)]
            order += [window.flatten() for window in windows]
            lengths += [window.numel() * tower.spatial_merge_unit for window in windows]
        first += t * h * w
    return {"window_index": torch.cat(order), "cu_window_seqlens": boundaries(lengths, grid)}
