"""InternVL3 and SmolVLM2: to the model a video is a row of pictures, with the placeholder and the entrance of images.

So a batch does not say what of it is a video: the processor does, and `pixel_values` becomes a list, in the order of
the prompts, of images (pictures, channels, height, width) and of videos (1, frames, channels, height, width).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tefusion.integrations.transformers.frame_host import FrameBlock, FrameHost
from tefusion.integrations.transformers.host import Visual, linear
from tefusion.integrations.transformers.placeholders import Placeholders, as_lists


class PictureHost(FrameHost):
    modality = "image"
    pixels = "pixel_values"
    steps_apart = True

    @property
    def factor(self) -> int:
        """Patches along a side of what becomes one token."""
        raise NotImplementedError

    @property
    def step(self) -> int:
        """Tokens of one picture."""
        h, w = self.merged((self.side, self.side))
        return h * w

    def merged(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid[0] // self.factor, grid[1] // self.factor

    def shuffled(self, x: Tensor) -> Tensor:
        return rearrange(x, "... (h p) (w q) d -> ... h w (p q d)", p=self.factor, q=self.factor)

    def found(self, batch: Mapping[str, Any], visuals: Sequence[Visual] | None = None) -> list[Placeholders]:
        if batch.get("pixel_values") is None:
            return []
        if visuals is None:
            raise ValueError(
                f"to {type(self.owner).__name__} a video is a row of pictures: say in visuals what each image and "
                'video of the prompts is, in their order, and its pictures, as in [("video", 8), ("image", 1)]'
            )
        return [Placeholders(pictures, self.step, video=kind == "video") for kind, pictures in visuals]

    def held(self, inputs: Mapping[str, Any], k: int) -> list[Placeholders]:
        if not isinstance(pixels := inputs.get("pixel_values"), list):
            return []
        visuals = [("video", x.shape[1]) if x.ndim == 5 else ("image", len(x)) for x in pixels]
        return [visual.grouped(k) for visual in self.found(inputs, visuals)]

    def written(self, replacements: Sequence[tuple[str, str]], image_token: str) -> list[Visual]:
        return [(kind, text.count(image_token) // self.step) for kind, text in replacements]

    def video_tokens(self, batch: Mapping[str, Any], found: Sequence[Placeholders]) -> list[list[bool]]:
        token = self.owner.config.image_token_id
        kinds = iter([visual.video for visual in found for _ in range(visual.count)])
        return [[value == token and next(kinds, True) for value in row] for row in as_lists(batch["input_ids"])]

    def inputs(self, batch: Mapping[str, Any], found: Sequence[Placeholders]) -> dict[str, Any]:
        changed, counts = dict(batch), [visual.steps for visual in found]
        for name, pictures in self.pictures(batch).items():
            if len(pictures) != sum(counts):
                raise ValueError(f"{name} holds {len(pictures)} pictures, and the visuals are {sum(counts)}")
            parts = zip(found, pictures.split(counts), strict=True)
            changed[name] = [part[None] if visual.video else part for visual, part in parts]
        return changed

    def pictures(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of the processor's inputs, those with a row for each picture."""
        return {"pixel_values": batch["pixel_values"]}

    def reordered(self, inputs: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
        names = [name for name in ("pixel_values", "pixel_attention_mask") if inputs.get(name) is not None]
        return {name: [inputs[name][i] for i in order] for name in names}

    def enter(self, compress: Any, own: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        visuals = arguments["pixel_values"]
        if isinstance(visuals, Tensor):
            return own(**arguments)
        masks = arguments.get("pixel_attention_mask") or [None] * len(visuals)
        more = {name: value for name, value in arguments.items() if not name.startswith("pixel")}
        embeds: list[Tensor] = []
        for visual, mask in zip(visuals, masks, strict=True):
            if visual.ndim == 5:
                (video,) = self.videos(visual, None)
                embeds += compress.embeds(self, video, self.grid(video, None, 0))
            else:
                embeds.append(tokens_of(self.image(own, visual, mask, more).pooler_output))
        return self.answer(embeds)

    def image(self, own: Callable[..., Any], x: Tensor, mask: Tensor | None, more: Mapping[str, Any]) -> Any:
        """What the model's own method makes of one image's pictures."""
        return own(x, **more)

    def answer(self, embeds: list[Tensor]) -> Any:
        pictures: Any = torch.cat(embeds).unflatten(0, (-1, self.step))
        return BaseModelOutputWithPooling(pooler_output=pictures)


class InternVLHost(PictureHost):
    @property
    def factor(self) -> int:
        return round(1 / self.owner.config.downsample_ratio)

    @property
    def tower(self) -> Any:
        return self.owner.vision_tower

    @property
    def all_layers(self) -> list[nn.Module]:
        encoder = self.tower.encoder
        return list(encoder.layer if hasattr(encoder, "layer") else encoder.layers)

    @property
    def patch_map(self) -> Any:
        return self.tower.embeddings.patch_embeddings.projection

    @property
    def first_map(self) -> Any:
        return self.owner.multi_modal_projector.linear_1

    def placed(self, tokens: Tensor) -> Tensor:
        embeddings = self.tower.embeddings
        tokens = torch.cat([embeddings.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        places = embeddings.position_embeddings
        return embeddings.dropout(tokens if places is None else tokens + places)

    def blocks(self, grid: tuple[int, int]) -> nn.ModuleList:
        return nn.ModuleList(map(FrameBlock, self.layers))

    def features(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        last = self.owner.config.vision_feature_layer == -1
        return super().features(self.tower.layernorm(x) if last else x, grid)

    def gather(self, x: Tensor) -> Tensor:
        return self.owner.multi_modal_projector.layer_norm(self.shuffled(x))

    def tail(self, x: Tensor) -> Tensor:
        projector = self.owner.multi_modal_projector
        return linear(projector.linear_2, projector.act(x))


class KnownPatches:
    """Embeddings whose patches are computed already."""

    def __init__(self, embeddings: nn.Module, patches: Tensor):
        self.embeddings, self.patches = embeddings, patches

    def patch_embedding(self, pixels: Tensor) -> Tensor:
        return self.patches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.embeddings, name)


class SmolVLMHost(PictureHost):
    """Its processor pads with black pictures, to as many as the longest video or row of images has."""

    @property
    def factor(self) -> int:
        return self.owner.config.scale_factor

    @property
    def tower(self) -> Any:
        return self.owner.vision_model

    @property
    def all_layers(self) -> list[nn.Module]:
        return list(self.tower.encoder.layers)

    @property
    def patch_map(self) -> Any:
        return self.tower.embeddings.patch_embedding

    @property
    def first_map(self) -> Any:
        return self.owner.connector.modality_projection.proj

    def pictures(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels = batch["pixel_values"].flatten(0, 1)
        real = (pixels != 0).flatten(1).any(1)  # as the model itself finds them
        mask = batch.get("pixel_attention_mask")
        masks = {} if mask is None else {"pixel_attention_mask": mask.flatten(0, 1)[real]}
        return {"pixel_values": pixels[real], **masks}

    def image(self, own: Callable[..., Any], x: Tensor, mask: Tensor | None, more: Mapping[str, Any]) -> Any:
        return own(x[None], None if mask is None else mask[None], **more)

    def placed(self, tokens: Tensor) -> Tensor:
        """By the model's own rule, which finds a place by its fraction of the side: versions round that differently."""
        side, size = self.side, self.image_size
        known = KnownPatches(self.tower.embeddings, rearrange(tokens, "s (h w) d -> s d h w", h=side))
        shown = tokens.new_ones(len(tokens), side, side, dtype=torch.bool)
        return type(known.embeddings).forward(known, tokens.new_empty(len(tokens), 1, size, size), shown)

    def features(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return super().features(self.tower.post_layernorm(x), grid)

    def gather(self, x: Tensor) -> Tensor:
        return self.shuffled(x)

    def tail(self, x: Tensor) -> Tensor:
        return x


def tokens_of(pictures: Any) -> Tensor:
    """(tokens, e); versions differ in what they return."""
    return torch.cat(list(pictures)) if isinstance(pictures, list | tuple) else pictures.flatten(0, -2)
