"""A prompt with placeholders for every frame -> the prompt of the compressed video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placeholders:
    """Of one video: `steps` time steps with `step` placeholders each, and `extra` behind the last. Of an image that
    has the placeholder of videos: `steps` pictures."""

    steps: int
    step: int
    extra: int = 0
    video: bool = True

    @property
    def count(self) -> int:
        return self.steps * self.step + self.extra

    def grouped(self, k: int) -> "Placeholders":
        return replace(self, steps=-(-self.steps // k)) if self.video else self


def shorten(rows: Sequence[Sequence[bool]], videos: Sequence[Placeholders], k: int, apart: bool) -> list[list[bool]]:
    """Which tokens of each row stay, given which are placeholders. Of each group, its first step's; where text stands
    between the steps (`apart`), what leads up to a step that goes is gone with it.

    Raises ValueError where the rows hold another number of placeholders than the videos have.
    """
    videos = [video for video in videos if video.video]
    keep = [[True] * len(row) for row in rows]
    places = [(r, i) for r, row in enumerate(rows) for i, is_placeholder in enumerate(row) if is_placeholder]
    if len(places) != sum(video.count for video in videos):
        raise ValueError(
            f"the prompt has {len(places)} video placeholders, its {len(videos)} videos make "
            f"{sum(video.count for video in videos)}: was it shortened already?"
        )
    first = 0
    for video in videos:
        for step in range(video.steps):
            if step % k == 0:
                continue
            start, end = first + step * video.step, first + (step + 1) * video.step - 1
            row, last = places[end]
            begin = places[start - 1][1] + 1 if apart else places[start][1]
            for place in range(begin, last + 1):
                keep[row][place] = False
        first += video.count
    return keep


def shortened(batch: Mapping[str, Any], keep: list[list[bool]], pad_id: int, left: bool) -> dict[str, Any]:
    """What goes with the tokens, without those that go; rows are padded to the longest again."""
    names = [name for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels") if name in batch]
    mask = mask_of(batch)
    lengths = lengths_of(keep, mask)
    fill = {"input_ids": pad_id, "labels": -100}
    changed: dict[str, Any] = {}
    for name in names:
        rows = []
        for row, kept, seen, length in zip(as_lists(batch[name]), keep, mask, lengths, strict=True):
            values = [value for value, k, m in zip(row, kept, seen, strict=True) if k and m]
            padding = [fill.get(name, 0)] * (max(lengths) - length)
            rows.append(padding + values if left else values + padding)
        changed[name] = torch.tensor(rows) if isinstance(batch[name], Tensor) else rows
    return changed


def mask_of(batch: Mapping[str, Any]) -> list[list[int]]:
    """Which tokens of a batch are none of its padding."""
    mask = batch.get("attention_mask")
    return as_lists(mask) if mask is not None else [[1] * len(row) for row in as_lists(batch["input_ids"])]


def lengths_of(keep: list[list[bool]], mask: list[list[int]]) -> list[int]:
    return [sum(k and m for k, m in zip(*row, strict=True)) for row in zip(keep, mask, strict=True)]


def as_lists(rows: Any) -> list[list[int]]:
    return rows.tolist() if isinstance(rows, Tensor) else [list(row) for row in rows]
