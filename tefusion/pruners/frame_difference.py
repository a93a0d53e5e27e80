"""frame_difference (EVS, 2510.14624, as in vLLM): the tokens that differ most from the frame before are kept.

Of all tokens the share 1 - drop is left, a frame's worth at least: those of the first frame, then those with the
largest 1 - cosine to the same place of the frame before, in the order they came; of equals the earlier. Kept tokens
keep their positions, and every frame its boi and eoi, though none of its tokens may be left. A frame is a group here:
behind a compressor it stands for k frames. The paper ranks by pixels, vLLM by the embeds.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from tefusion.pruners.base import Pruner

FIRST = 255.0  # above any 1 - cosine


class FrameDifference(Pruner):
    source = "EVS 2510.14624"

    def __init__(self, drop: float = 0.5):
        if not 0 <= drop < 1:
            raise ValueError(f"frame_difference: drop must be from 0 to below 1, got {drop}")
        self.drop = drop

    def tokens_out(self, groups: int, tokens: int) -> int:
        return max(tokens, int(groups * tokens * (1 - self.drop)))

    def prune(
        self, embeds: Float[Tensor, "g m e"], block: Float[Tensor, "l e"], places: list[int]
    ) -> tuple[Float[Tensor, "kept e"], list[int]]:
        kept = F.pad(self.keep(embeds), (1, 1), value=True).flatten()  # boi and eoi
        return block[kept], [place for place, stays in zip(places, kept.tolist(), strict=True) if stays]

    def keep(self, embeds: Float[Tensor, "g m e"]) -> Bool[Tensor, "g m"]:
        groups, tokens, _ = embeds.shape
        news = 1 - F.cosine_similarity(embeds[1:].detach().float(), embeds[:-1].detach().float(), dim=-1)
        ranked = torch.cat([news.new_full((1, tokens), FIRST), news]).flatten().argsort(descending=True, stable=True)
        kept = torch.zeros(groups * tokens, dtype=torch.bool, device=embeds.device)
        kept[ranked[: self.tokens_out(groups, tokens)]] = True
        return kept.view(groups, tokens)
