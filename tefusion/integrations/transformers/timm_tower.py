"""timm's ViTs: the tokens of a group are one sequence for each block's attention, class and prefix tokens included.

timm's blocks take nothing but tokens, so k is fixed while the tower is grouped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from tefusion.integrations.transformers.calls import Calls, replace_attribute


@dataclass(frozen=True)
class TimmTower:
    def install(self, tower: Any, calls: Calls) -> list[Callable[[], None]]:
        blocks = list(tower.blocks)
        for block in blocks:
            if not hasattr(block, "attn"):
                raise ValueError(f"{type(tower).__name__}: its {type(block).__name__} has no module `attn`")
        if calls.k == 1:
            return []
        prefix = tower.num_prefix_tokens
        undo = []
        for block in blocks:
            grouped = GroupedAttention(block.attn.forward, calls.k, prefix)
            undo.append(replace_attribute(block.attn, "forward", grouped))
            if hasattr(block.attn, "num_prefix_tokens"):  # what its rotation leaves alone
                undo.append(replace_attribute(block.attn, "num_prefix_tokens", calls.k * prefix))
        return undo


@dataclass(frozen=True)
class GroupedAttention:
    """All frames' prefix tokens come first: attention does not mind the order, and a rotation skips the first ones."""

    forward: Callable[..., Tensor]
    k: int
    prefix: int

    def __call__(self, x: Tensor, *args: Any, rope: Tensor | None = None, **kwargs: Any) -> Tensor:
        if any(mask is not None for mask in (*args, kwargs.get("attn_mask"))) or kwargs.get("is_causal"):
            raise ValueError("a grouped timm tower takes no attention mask")
        if x.shape[0] % self.k:
            raise ValueError(f"{x.shape[0]} frames do not divide into groups of k = {self.k}")
        if rope is not None:
            kwargs["rope"] = self.angles(rope, x.shape[0])
        parts = [rearrange(part, "(g k) n d -> g (k n) d", k=self.k) for part in self.split(x, 1)]
        out = self.forward(torch.cat(parts, 1), **kwargs)
        parts = [rearrange(part, "g (k n) d -> (g k) n d", k=self.k) for part in self.split(out, self.k)]
        return torch.cat(parts, 1)

    def split(self, x: Tensor, frames: int) -> list[Tensor]:
        first = frames * self.prefix
        return [x[:, :first], x[:, first:]]

    def angles(self, rope: Tensor, frames: int) -> Tensor:
        if rope.ndim == 4 and rope.shape[0] == frames:  # of each frame its own
            return rearrange(rope, "(g k) h n d -> g h (k n) d", k=self.k)
        return repeat(rope, "... n d -> ... (k n) d", k=self.k)
