"""VideoLLaMA3: packed frames, a bilinear halving of the grid, two linear maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tefusion.integrations.transformers.host import Sizes
from tefusion.integrations.transformers.placeholders import Placeholders
from tefusion.integrations.transformers.qwen_host import PackedBlock, PackedHost


class VideoLlama3Host(PackedHost):
    steps_apart = True

    @property
    def tower(self) -> Any:
        return self.owner.vision_model

    @property
    def sizes(self) -> Sizes:
        vision, text = self.vision, self.owner.config.text_config
        depth, heads = vision.num_hidden_layers, vision.num_attention_heads
        return Sizes(vision.hidden_size, text.hidden_size, text.hidden_size, depth, heads)

    @property
    def patch_map(self) -> Any:
        return self.tower.embeddings.patch_embedding

    @property
    def first_map(self) -> Any:
        return self.owner.projector.readout[0]

    def inputs(self, batch: Mapping[str, Any], found: Sequence[Placeholders]) -> dict[str, Any]:
        """Its own dropping of tokens would not know the groups."""
        mask = batch.get("video_compression_mask")
        if mask is not None and not torch.as_tensor(mask).all():
            raise ValueError("the processor has dropped tokens of the videos: use_token_compression must be False")
        return {name: value for name, value in batch.items() if name != "video_compression_mask"}

    def patch_tokens(self, x: Tensor, patches: nn.Linear | None) -> Tensor:
        x = rearrange(x, "b s c n 1 -> (b s n) c")
        return self.tower.embeddings(x) if patches is None else patches(x)

    def blocks(self, grid: tuple[int, int]) -> nn.ModuleList:
        angles = self.angles(self.patch_map.weight, grid)
        return nn.ModuleList(PackedBlock(layer, angles) for layer in self.tower.encoder.layers)

    def features(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return super().features(self.tower.post_layernorm(x), grid)

    def gather(self, x: Tensor) -> Tensor:
        lead, (h, w) = x.shape[:-3], self.merged((x.shape[-3], x.shape[-2]))
        x = F.interpolate(rearrange(x.flatten(0, -4), "s h w d -> s d h w"), size=(h, w), mode="bilinear")
        return rearrange(x, "s d h w -> s h w d").unflatten(0, lead)

    def tail(self, x: Tensor) -> Tensor:
        return self.owner.projector.readout[1:](x)
