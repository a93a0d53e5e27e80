"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: patches two frames deep, packed in 2x2 blocks, and a projector that joins a block."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from tefusion.integrations.transformers.host import Host, Sizes, Visual, blocks_of_four, mentions, raster
from tefusion.integrations.transformers.packed_tower import boundaries, grouped_windows
from tefusion.integrations.transformers.placeholders import Placeholders, as_lists


class PackedBlock(nn.Module):
    """One layer of a packed tower. `order` puts a row's tokens window by window, `lengths` says where they end."""

    def __init__(self, layer: nn.Module, angles: tuple[Tensor, Tensor], windows: Any = None):
        super().__init__()
        self.layer, self.angles, self.windows = layer, angles, windows

    def forward(self, x: Tensor) -> Tensor:
        rows, frames, tokens, _ = x.shape
        angles = [repeat(a, "n d -> (j n) d", j=frames) for a in self.angles]
        x, lengths, order = x.flatten(1, 2), [frames * tokens], None
        if self.windows is not None:
            order, lengths = self.windows(frames)
            x, angles = x[:, order], [a[order] for a in angles]
        out = self.layer(
            x.flatten(0, 1),
            cu_seqlens=boundaries(lengths * rows, x),
            max_seqlen=max(lengths),
            position_embeddings=tuple(a.repeat(rows, 1) for a in angles),
        ).unflatten(0, (rows, -1))
        if order is not None:
            out = out[:, torch.argsort(order)]
        return out.unflatten(1, (frames, tokens))


class PackedHost(Host):
    """Towers that take patches with a grid of (time steps, patches down, patches across)."""

    takes_patches = True

    @property
    def tower(self) -> Any:
        return self.owner.visual

    @property
    def vision(self) -> Any:
        return self.owner.config.vision_config

    def found(self, batch: Mapping[str, Any], visuals: Sequence[Visual] | None = None) -> list[Placeholders]:
        grid = batch.get("video_grid_thw")
        return [Placeholders(t, h * w // 4, self.extra_tokens) for t, h, w in ([] if grid is None else as_lists(grid))]

    def reordered(self, inputs: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
        parts = inputs[self.pixels].split(inputs["video_grid_thw"].prod(-1).tolist())
        rows = ("video_grid_thw", "second_per_grid_ts", "video_merge_sizes")
        given = {name: inputs[name] for name in rows if inputs.get(name) is not None}
        chosen = {
            name: value[list(order)] if isinstance(value, Tensor) else [value[i] for i in order]
            for name, value in given.items()
        }
        return {self.pixels: torch.cat([parts[i] for i in order]), **chosen}

    def videos(self, pixels: Any, grid: Tensor | None) -> list[Tensor]:
        if grid is None:
            raise ValueError("video_grid_thw is missing")
        parts = pixels.to(self.patch_map.weight.dtype).split(grid.prod(-1).tolist())
        return [
            rearrange(part, "(t n) c -> 1 t c n 1", t=t) for part, t in zip(parts, grid[:, 0].tolist(), strict=True)
        ]

    def grid(self, video: Tensor, sizes: Tensor | None, index: int) -> tuple[int, int]:
        assert sizes is not None  # `videos` looked
        h, w = sizes[index, 1:].tolist()
        return h, w

    def patches_of(self, height: int, width: int) -> tuple[int, int]:
        side = self.vision.patch_size * 2
        if height % side or width % side or not height or not width:
            raise ValueError(f"this model's frames are multiples of {side} pixels, got {height}x{width}")
        return height // self.vision.patch_size, width // self.vision.patch_size

    def patch_tokens(self, x: Tensor, patches: nn.Linear | None) -> Tensor:
        x = rearrange(x, "b s c n 1 -> (b s n) c")
        return self.tower.patch_embed(x) if patches is None else patches(x)

    def angles(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        place = get_vision_position_ids(torch.tensor([[1, *grid]], device=x.device), 2)
        return self.tower.rotary_pos_emb(x, place)

    def embed(self, x: Tensor, patches: nn.Linear | None, grid: tuple[int, int]) -> Tensor:
        return rearrange(self.patch_tokens(x, patches), "(b s n) d -> b s n d", b=len(x), s=x.shape[1])

    def blocks(self, grid: tuple[int, int]) -> nn.ModuleList:
        angles = self.angles(self.patch_map.weight, grid)
        return nn.ModuleList(PackedBlock(layer, angles) for layer in self.tower.blocks)

    def features(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return raster(x, grid)

    def answer(self, embeds: list[Tensor]) -> Any:
        videos: Any = tuple(embeds)
        return BaseModelOutputWithPooling(pooler_output=videos)


class Qwen2VLHost(PackedHost):
    frames_per_step = 2

    @property
    def sizes(self) -> Sizes:
        vision, text = self.vision, self.owner.config.text_config
        width = self.first_map.in_features // 4
        return Sizes(width, text.hidden_size, self.first_map.out_features, vision.depth, vision.num_heads)

    @property
    def patch_map(self) -> Any:
        return self.tower.patch_embed.proj

    @property
    def first_map(self) -> Any:
        return self.tower.merger.mlp[0]

    def gather(self, x: Tensor) -> Tensor:
        return blocks_of_four(self.tower.merger.ln_q(x))

    def tail(self, x: Tensor) -> Tensor:
        return self.tower.merger.mlp[1:](x)


class Qwen25VLHost(Qwen2VLHost):
    def blocks(self, grid: tuple[int, int]) -> nn.ModuleList:
        device = self.patch_map.weight.device

        def windows(frames: int) -> tuple[Tensor, list[int]]:
            group = torch.tensor([[frames, *grid]], device=device)
            found = grouped_windows(self.tower, group, frames)
            order = (found["window_index"][:, None] * 4 + torch.arange(4, device=device)).flatten()
            return order, found["cu_window_seqlens"].diff().tolist()

        angles, full = self.angles(self.patch_map.weight, grid), self.tower.fullatt_block_indexes
        layers = enumerate(self.tower.blocks)
        return nn.ModuleList(PackedBlock(layer, angles, None if i in full else windows) for i, layer in layers)


class Qwen3VLHost(Qwen2VLHost):
    """Its decoder also adds features of early blocks to the placeholders (DeepStack): of a group, their mean."""

    steps_apart = True

    def __init__(self, owner: Any):
        super().__init__(owner)
        self.early: list[list[list[Tensor]]] = []  # of each video, of each block that is read, in the order of time

    @property
    def first_map(self) -> Any:
        return self.tower.merger.linear_fc1

    def gather(self, x: Tensor) -> Tensor:
        return blocks_of_four(self.tower.merger.norm(x))

    def tail(self, x: Tensor) -> Tensor:
        return self.tower.merger.linear_fc2(self.tower.merger.act_fn(x))

    def embed(self, x: Tensor, patches: nn.Linear | None, grid: tuple[int, int]) -> Tensor:
        tower = self.tower
        index, weight = get_vision_interpolation_indices_and_weights(
            torch.tensor([[1, *grid]], device=x.device),
            num_grid_per_side=tower.num_grid_per_side,
            mode="bilinear",
            align_corners=True,
            spatial_merge_size=2,
        )
        places = (tower.pos_embed(index) * weight[:, :, None]).sum(1)
        tokens = super().embed(x, patches, grid)
        return tokens + places.to(tokens.dtype)

    def blocks(self, grid: tuple[int, int]) -> nn.ModuleList:
        blocks = super().blocks(grid)
        self.early.append([[] for _ in self.tower.deepstack_visual_indexes])
        for states, index in zip(self.early[-1], self.tower.deepstack_visual_indexes, strict=True):
            blocks[index].register_forward_hook(lambda module, args, out, to=states: to.append(out.flatten(0, 1)))
        return blocks

    def answer(self, embeds: list[Tensor]) -> Any:
        videos: Any = tuple(embeds)
        early: Any = []
        split = mentions(type(self.owner).get_image_features, "deepstack_features")  # since 5.24 for each video
        for at, merger in enumerate(self.tower.deepstack_merger_list):
            pairs = zip(self.early, embeds, strict=True)
            parts = tuple(self.early_tokens(torch.cat(states[at]), merger, len(embed)) for states, embed in pairs)
            early.append(parts if split else torch.cat(parts))
        return BaseModelOutputWithDeepstackFeatures(pooler_output=videos, deepstack_features=early)

    def early_tokens(self, states: Tensor, merger: nn.Module, tokens: int) -> Tensor:
        """(frames, n, d) of one block -> as many tokens as the video has in the decoder"""
        merged = merger(states.flatten(0, 1))
        per_step = states.shape[1] // 4
        return rearrange(merged, "(g j m) e -> g j m e", g=tokens // per_step, m=per_step).mean(1).flatten(0, 1)
