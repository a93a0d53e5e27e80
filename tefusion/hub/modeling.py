"""The VLM of `tefusion.vlm` as a transformers model: the same modules under the same names, called with token ids.

A video's place in `input_ids` is a run of `video_token_id`, as long as its blocks: boi, embeds and eoi of each group.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin

from tefusion.compressors import COMPRESSORS
from tefusion.hub.card import write_card
from tefusion.hub.complete import Complete
from tefusion.hub.configuration import TEFusionConfig
from tefusion.hub.tower import builder
from tefusion.vision import VideoEncoder, assemble, grid_of, method_for
from tefusion.vlm import VLM, blocks, check_length

Videos = Float[Tensor, "v t 3 height width"] | list[Float[Tensor, "_t 3 _height _width"]]
Seconds = Float[Tensor, "v t"] | list[Float[Tensor, " _t"]]


def create_encoder(config: TEFusionConfig) -> VideoEncoder:
    vision: Any = config.vision_config
    method = method_for(vision.sizes, config.compressor, config.k, **config.compressor_options)
    return assemble(vision.sizes, method, builder(vision.tower))


class TEFusionForConditionalGeneration(Complete, GenerationMixin):
    """`attn_implementation` chooses the decoder's attention; the tower's is picked by `tefusion.kernels`."""

    config_class = TEFusionConfig
    main_input_name = "input_ids"
    input_modalities = ["video", "text"]  # noqa: RUF012, a list in transformers too
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = ["ViTBlock", "TimmBlock"]  # noqa: RUF012, transformers makes it a set of the instance

    def __init__(self, config: TEFusionConfig):
        super().__init__(config)
        self.encoder = create_encoder(config)
        self.decoder = AutoModelForCausalLM.from_config(config.text_config)
        width = self.decoder.get_input_embeddings().embedding_dim
        self.boi = nn.Parameter(torch.empty(1, width).normal_(std=0.02))
        self.eoi = nn.Parameter(torch.empty(1, width).normal_(std=0.02))
        self.post_init()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, with a model card."""
        super().save_pretrained(save_directory, *args, **kwargs)
        config: Any = self.config
        if kwargs.get("is_main_process", True):
            write_card(Path(save_directory), config)

    def _init_weights(self, module: nn.Module) -> None:
        """Our modules draw their own when they are made; the decoder's are drawn by its own class."""

    def vlm(self, tokenizer) -> VLM:
        """The same weights behind the interface of the sweep: frames and texts in, replies out."""
        vlm = VLM(self.encoder, self.decoder, tokenizer)
        vlm.boi, vlm.eoi = self.boi, self.eoi
        return vlm.train(self.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.decoder.set_output_embeddings(value)

    def get_decoder(self):
        return self.decoder

    def forward(
        self,
        input_ids: Int[Tensor, "b l"] | None = None,
        pixel_values_videos: Videos | None = None,
        video_seconds: Seconds | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "b l"] | None = None,
        inputs_embeds: Float[Tensor, "b l e"] | None = None,
        labels: Int[Tensor, "b l"] | None = None,
        **kwargs,
    ):
        """What the decoder returns; `kwargs` are the decoder's. Videos come in the order of their places, row by row;
        `video_seconds` says of each when its frames are shown, for the compressors that read it.

        Raises ValueError where places and videos do not fit together.
        """
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # before transformers 5.24 it had the longer name
        if position_ids is None and cache is not None and cache.get_seq_length():
            raise ValueError("text that goes on from a cache needs position_ids: the embeds of a video share theirs")
        # Without a mask, positions that embeds share look like several packed texts to the decoder.
        needs_mask = attention_mask is None and cache is None
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("either input_ids or inputs_embeds are needed")
            fits = attention_mask is not None and attention_mask.shape == input_ids.shape
            mask = attention_mask if attention_mask is not None and fits else torch.ones_like(input_ids)
            inputs_embeds, positions = self.splice(input_ids, pixel_values_videos, mask, video_seconds)
            position_ids = positions if position_ids is None else position_ids
        if needs_mask:
            attention_mask = torch.ones_like(inputs_embeds[..., 0], dtype=torch.long)
        return self.decoder(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "b l"] | None = None,
        pixel_values_videos: Videos | None = None,
        video_seconds: Seconds | None = None,
        attention_mask: Int[Tensor, "b l"] | None = None,
        **kwargs,
    ):
        """As in transformers. Videos are encoded once, before beams multiply the rows."""
        if input_ids is not None and pixel_values_videos is not None:
            attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            embeds, positions = self.splice(input_ids, pixel_values_videos, attention_mask, video_seconds)
            kwargs |= {"inputs_embeds": embeds, "position_ids": positions}
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def splice(
        self,
        input_ids: Int[Tensor, "b l"],
        videos: Videos | None,
        mask: Int[Tensor, "b l"],
        seconds: Seconds | None = None,
    ) -> tuple[Float[Tensor, "b l e"], Int[Tensor, "b l"]]:
        """The embeds of all places, of text and of videos, and GLM-4V's position ids."""
        self.check_room(input_ids.shape[1], [(len(v), *v.shape[-2:]) for v in ([] if videos is None else videos)])
        marked = input_ids == self.config.video_token_id
        embeds = self.get_input_embeddings()(input_ids.masked_fill(marked, 0))
        parts = [blocks(embed.to(embeds), self.boi, self.eoi) for embed in self.encode(videos, seconds)]
        check_places(marked.sum(1).tolist(), [len(place) for _, place in parts])
        steps = torch.ones_like(input_ids)
        if parts:
            embeds = embeds.masked_scatter(marked[..., None], torch.cat([block for block, _ in parts]))
            within = [1 if i == 0 else b - a for _, place in parts for i, (a, b) in enumerate(pairwise([0, *place]))]
            steps = steps.masked_scatter(marked, torch.tensor(within, device=steps.device))
        return embeds, ((steps * mask).cumsum(1) - 1).clamp(min=0)

    def check_room(self, length: int, videos: Sequence[tuple[int, int, int]]) -> None:
        """Raises ValueError where `length` tokens are more than the decoder's context; it says which larger k would
        make these videos (frames, height, width) short enough."""
        config: Any = self.config
        try:
            check_length(self.decoder.config, length)
        except ValueError as error:
            grids = [grid_of(height, width, self.encoder.tower.patch_size) for _, height, width in videos]
            blocks_of = [(frames, h // 2 * (w // 2) + 2) for (frames, *_), (h, w) in zip(videos, grids, strict=True)]
            text = length - sum(frames // config.k * m for frames, m in blocks_of)
            shorter = [k for k in COMPRESSORS[config.compressor].valid_k if k > config.k]
            whole = [k for k in shorter if all(frames % k == 0 for frames, _ in blocks_of)]
            limit = self.decoder.config.max_position_embeddings
            fits = [k for k in whole if text + sum(frames // k * m for frames, m in blocks_of) <= limit]
            said = f"k = {fits[0]} would fit" if fits else "no k would fit, fewer frames or smaller ones may"
            raise ValueError(f"{error}; {said}" if blocks_of else str(error)) from None

    def encode(self, videos: Videos | None, seconds: Seconds | None = None) -> list[Float[Tensor, "_g _m e"]]:
        """Normalised pixels -> the embeds of each video; those of one shape go through the encoder together."""
        if videos is None:
            return []
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, video in enumerate(videos):
            shapes.setdefault(tuple(video.shape), []).append(i)
        embeds: dict[int, Tensor] = {}
        for rows in shapes.values():
            stack = torch.stack([videos[i] for i in rows]).to(self.boi)
            shown = None if seconds is None else torch.stack([seconds[i] for i in rows]).to(stack.device)
            embeds |= dict(zip(rows, self.encoder(stack, shown), strict=True))
        return [embeds[i] for i in range(len(embeds))]


def check_places(rows: list[int], lengths: list[int]) -> None:
    """Raises ValueError where the rows' places are not those of whole videos in order."""
    left = list(lengths)
    for row, places in enumerate(rows):
        taken = 0
        while taken < places and left:
            taken += left.pop(0)
        if taken != places:
            raise ValueError(f"row {row} has {places} places for videos of {lengths} tokens")
    if left:
        raise ValueError(f"{len(left)} of {len(lengths)} videos have no place in the text")
