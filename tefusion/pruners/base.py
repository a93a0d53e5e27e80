"""none: the decoder sees every token. Two hooks, each the identity."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor


class Pruner:
    """A pruner has no parameters: it chooses among the embeds of one video, and how many are left is known before."""

    source: ClassVar[str] = ""

    def tokens_out(self, groups: int, tokens: int) -> int:
        """How many of `groups` times `tokens` embeds are left; exact before anything runs."""
        return groups * tokens

    def prune(
        self, embeds: Float[Tensor, "g m e"], block: Float[Tensor, "l e"], places: list[int]
    ) -> tuple[Float[Tensor, "kept e"], list[int]]:
        """What is left of a video's block, boi and eoi of every group around its embeds, and of their places."""
        return block, places
