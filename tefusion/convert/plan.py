"""What a conversion does, whoever's checkpoint it reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tefusion.convert.move import Move
from tefusion.encoders.released import Checkpoint


@dataclass(frozen=True)
class Plan:
    """`moves` take the checkpoint's tensors to their places, `made` are tensors that it has not. Names for which
    `left_out` holds have no place in the result. `beside` writes configuration and tokenizer, given the precision."""

    name: str
    checkpoint: Checkpoint
    moves: Sequence[Move]
    beside: Callable[[Path, torch.dtype], None]
    left_out: Callable[[str], bool] = lambda name: False
    made: Mapping[str, Callable[[torch.dtype], Tensor]] = field(default_factory=dict)

    def unexpected(self) -> list[str]:
        """What the moves did not ask for and the result has no place for either."""
        return sorted(name for name in self.checkpoint.unread if not self.left_out(name))
