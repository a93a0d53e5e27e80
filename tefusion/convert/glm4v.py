"""GLM-4V-9B as released -> our model of the same function, and one of ours that has its parts -> GLM-4V-9B.

The table of positions keeps the 80 x 80 places of 1120 px: the tower resamples it to any other size as it runs. boi and
eoi are stored as the decoder sees them, divided by the tower's scale.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GlmConfig

from tefusion.choices import brief, in_short
from tefusion.convert.chatglm import FREQUENCIES, decoder_config, decoder_moves, frequencies, original_config
from tefusion.convert.move import Move, Slot, same
from tefusion.convert.plan import Plan
from tefusion.convert.tokenizer import read_tokenizer, video_template
from tefusion.encoders import VisionConfig
from tefusion.encoders.released import (
    EPS,
    FIXED,
    PREFIX,
    SCALE,
    SIZES,
    Checkpoint,
    read_config,
    released_name,
    released_shape,
)
from tefusion.files import replace_file
from tefusion.hub.card import write_card
from tefusion.hub.configuration import TEFusionConfig, TEFusionVisionConfig
from tefusion.hub.loading import UNLOADABLE
from tefusion.hub.modeling import TEFusionForConditionalGeneration
from tefusion.hub.processing import VIDEO, TEFusionProcessor
from tefusion.json_files import read_object
from tefusion.vision import assemble, method_for

VIDEO_SIZE = 224  # pixels: what the processor resizes to at first
FRAMES = 16


def from_glm4v(folder: Path) -> Plan:
    vision = read_config(folder)
    text = decoder_config(read_object(folder / "config.json"), folder / "config.json")
    if (vision.embed_dim, vision.glu) != (text.hidden_size, text.intermediate_size):
        raise ValueError(f"{folder / 'config.json'}: tower and decoder have different widths")
    return Plan(
        "glm4v",
        Checkpoint(folder, "", "the GLM-4V-9B checkpoint"),
        [*vision_moves(vision), *decoder_moves(text)],
        lambda out, dtype: write_ours(out, folder, vision, text, dtype),
        FREQUENCIES.__eq__,
    )


def to_glm4v(folder: Path) -> Plan:
    """Raises ValueError where our model is not made of GLM-4V-9B's parts."""
    kind = read_object(folder / "config.json").get("model_type")
    if kind != TEFusionConfig.model_type:
        raise ValueError(f"{folder} holds no model of tefusion: its model_type is {brief(kind)}")
    try:
        return plan_back(folder, TEFusionConfig.from_pretrained(folder))
    except UNLOADABLE as error:
        raise ValueError(f"{folder} cannot become GLM-4V-9B: {in_short(error)}") from None


def plan_back(folder: Path, config: Any) -> Plan:
    tower, text = config.vision_config.tower, config.text_config
    if (config.compressor, config.k, tower, text.model_type) != ("none", 1, "glm4v", "glm"):
        said = f"compressor {config.compressor}, k = {config.k}, tower {tower}, decoder {text.model_type}"
        raise ValueError(f"{folder} is not made of GLM-4V-9B's parts alone: {said}")
    vision, original = config.vision_config.sizes, original_config(text)
    if (vision.embed_dim, vision.glu) != (text.hidden_size, text.intermediate_size):
        raise ValueError(f"{folder}: GLM-4V-9B's projector is as wide as its decoder, inside and out")
    return Plan(
        "tefusion",
        Checkpoint(folder, "", "the tefusion model"),
        [move.back for move in (*vision_moves(vision), *decoder_moves(text))],
        lambda out, dtype: write_original(out, vision, original, dtype),
        made={FREQUENCIES: lambda dtype: frequencies(text, dtype)},
    )


def vision_moves(config: VisionConfig) -> list[Move]:
    """Of tower, projector, boi and eoi."""
    with torch.device("meta"):
        encoder = assemble(config, method_for(config, "none", 1))
    moves = [
        same(released_name(name), f"encoder.{name}", tuple(tensor.shape), released_shape(name, tensor, config))
        for name, tensor in encoder.named_parameters()
    ]
    for name in ("boi", "eoi"):
        stored, own = Slot(PREFIX + name, (1, 1, config.embed_dim)), Slot(name, (1, config.embed_dim))
        moves.append(Move((stored,), (own,), config.scale))
    return moves


def write_ours(out: Path, folder: Path, vision: VisionConfig, text: GlmConfig, dtype: torch.dtype) -> None:
    tokenizer = read_tokenizer(folder)
    place = text.vocab_size - 1
    if tokenizer is not None:
        place = tokenizer.convert_tokens_to_ids(VIDEO)
        if place >= text.vocab_size:
            raise ValueError(f"{folder}: the tokenizer leaves no row of {text.vocab_size} for the token of a video")
        processor = TEFusionProcessor(
            tokenizer,
            chat_template=video_template(tokenizer),
            frames=FRAMES,
            size=str(VIDEO_SIZE),
            k=1,
            patch_size=vision.patch_size,
        )
        processor.save_pretrained(out)
    config = TEFusionConfig(
        vision_config=TEFusionVisionConfig.of(vision),
        text_config=text,
        video_token_id=place,
        dtype=dtype,
        architectures=[TEFusionForConditionalGeneration.__name__],
    )
    settings = GenerationConfig(eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id, suppress_tokens=[place])
    settings.save_pretrained(out)
    config.save_pretrained(out)
    write_card(out, config)


def write_original(out: Path, vision: VisionConfig, original: dict[str, Any], dtype: torch.dtype) -> None:
    sizes = {theirs: getattr(vision, ours) for ours, theirs in SIZES.items()}
    sizes |= {SCALE: vision.scale, EPS: vision.eps, **FIXED}
    sizes["vision_config.num_positions"] = 1 + vision.grid[0] * vision.grid[1]
    inside = {name.removeprefix("vision_config."): value for name, value in sizes.items() if "." in name}
    said: dict[str, Any] = {"architectures": ["ChatGLMModel"], "model_type": "chatglm"}
    said |= {**original, "torch_dtype": str(dtype).removeprefix("torch.")}
    said |= {"vision_config": {**inside, "dropout_prob": 0.0}}
    said |= {"boi_token_id": 151339, "eoi_token_id": 151340} if original["padded_vocab_size"] > 151340 else {}
    replace_file(out / "config.json", json.dumps(said, indent=2, sort_keys=True).encode())
