"""Beams of a compressed model: each goes with the videos of its row.

The library repeats what its rows hold, and before 5.24 tells their videos apart by the placeholders of uncompressed
ones, or not at all. From then on `generate` encodes videos first, and none of this is asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tefusion.integrations.transformers.hosts import host_of
from tefusion.integrations.transformers.placeholders import Placeholders


@dataclass(frozen=True)
class Beams:
    owner: Any
    method: Callable[..., tuple[Any, dict[str, Any]]]

    def __call__(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        host = host_of(self.owner)
        found = host.held(kwargs, self.owner.video_compressor.compressor.k)
        if expand_size == 1 or input_ids is None or not any(visual.video for visual in found):
            return self.method(expand_size, is_encoder_decoder, input_ids, **kwargs)
        marked = host.video_tokens({**kwargs, "input_ids": input_ids}, [replace(v, video=True) for v in found])
        order = [i for row in of_rows(found, marked) for _ in range(expand_size) for i in row]
        videos = host.reordered(kwargs, order)
        rest = {name: value for name, value in kwargs.items() if name not in videos}
        alone = input_ids.masked_fill(torch.tensor(marked, device=input_ids.device), 0)  # as if there were no videos
        _, expanded = self.method(expand_size, is_encoder_decoder, alone, **rest)
        return input_ids.repeat_interleave(expand_size, 0), {**expanded, **videos}


def of_rows(found: Sequence[Placeholders], marked: Sequence[Sequence[bool]]) -> list[list[int]]:
    """Which of the visuals stand in each row."""
    left, rows = list(range(len(found))), []
    for row in marked:
        places, held = sum(row), []
        while left and places > 0:
            held.append(left.pop(0))
            places -= found[held[-1]].count
        rows.append(held)
    return rows
