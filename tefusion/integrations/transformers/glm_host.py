"""GLM-4.1V: patches two frames deep, a 2x2 convolution, a gated unit; its videos use the placeholder of images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.vision_utils import get_vision_position_ids

from tefusion.integrations.transformers.host import Sizes
from tefusion.integrations.transformers.placeholders import Placeholders, as_lists
from tefusion.integrations.transformers.qwen_host import PackedHost


class Glm4vHost(PackedHost):
    frames_per_step = 2
    steps_apart = True

    @property
    def sizes(self) -> Sizes:
        vision, text = self.vision, self.owner.config.text_config
        return Sizes(vision.hidden_size, text.hidden_size, vision.out_hidden_size, vision.depth, vision.num_heads)

    @property
    def patch_map(self) -> Any:
        return self.tower.patch_embed.proj

    @property
    def first_map(self) -> Any:
        return self.tower.downsample

    def video_tokens(self, batch: Mapping[str, Any], found: Sequence[Placeholders]) -> list[list[bool]]:
        if (types := batch.get("mm_token_type_ids")) is None:
            return super().video_tokens(batch, found)
        return [[kind == 2 for kind in row] for row in as_lists(types)]

    def embed(self, x: Tensor, patches: nn.Linear | None, grid: tuple[int, int]) -> Tensor:
        tower, frames = self.tower, len(x) * x.shape[1]
        tokens = tower.post_conv_layernorm(self.patch_tokens(x, patches))
        shapes = torch.tensor([[1, *grid]] * frames, device=tokens.device)
        place = get_vision_position_ids(shapes, 2)
        tokens = tower.embeddings(tokens, shapes.prod(-1), shapes, place[:, 0], place[:, 1])
        return rearrange(tokens, "(b s n) d -> b s n d", b=len(x), s=x.shape[1])

    def features(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return super().features(self.tower.post_layernorm(x), grid)

    def gather(self, x: Tensor) -> Tensor:
        return rearrange(x, "... (h p) (w q) d -> ... h w (d p q)", p=2, q=2)

    def tail(self, x: Tensor) -> Tensor:
        return self.tower.merger(x)
