"""Towers alone: CogVLM2-Video's, a timm ViT, SigLIP's -> `TEFusionVisionModel`. What follows a tower is left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import SiglipVisionConfig

from tefusion.choices import brief, in_short
from tefusion.convert.move import Move, Slot, joined, same
from tefusion.convert.plan import Plan
from tefusion.encoders import VisionConfig
from tefusion.encoders.released import Checkpoint, is_size, read_config, released_name, released_shape
from tefusion.encoders.timm_vit import create_vit, timm_config
from tefusion.hub.configuration import TEFusionVisionConfig
from tefusion.hub.tower import TEFusionVisionModel, builder
from tefusion.json_files import read_object

COGVLM2 = "model.vision."
COGVLM2_LEFT = tuple(COGVLM2 + part for part in ("conv.", "linear_proj.", "boi", "eoi"))
TIMM_LEFT = ("head.", "head_dist.", "fc_norm.", "attn_pool.", "pre_logits.")
TIMM_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
SIGLIP = "vision_model."
SIGLIP_AS = "timm:vit_base_patch32_siglip_256"  # timm's SigLIP with the released activation, at any sizes


def from_cogvlm2_video(folder: Path) -> Plan:
    """GLM-4V's tower with 224 px of positions, under another prefix; it divides nothing by 8."""
    file = folder / "config.json"
    given = {"ffn_hidden_size": read_object(file).get("intermediate_size"), "vision_config.scaling_factor": 1.0}
    config = read_config(folder, given)
    names = parameters(config, "glm4v")
    moves = [
        same(
            released_name(f"tower.{name}", COGVLM2),
            f"tower.{name}",
            tuple(tensor.shape),
            released_shape(f"tower.{name}", tensor, config),
        )
        for name, tensor in names.items()
    ]
    checkpoint = Checkpoint(folder, COGVLM2, "the CogVLM2-Video checkpoint")
    return plan("cogvlm2_video", checkpoint, moves, config, "glm4v", COGVLM2_LEFT)


def from_timm(folder: Path) -> Plan:
    """A folder as timm's `save_for_hf` writes it."""
    file = folder / "config.json"
    said = read_object(file)
    name, args = said.get("architecture"), said.get("model_args") or {}
    if not isinstance(name, str) or not isinstance(args, dict):
        raise ValueError(f"{file} names no architecture of timm")
    name = name.partition(".")[0]  # behind it: whose weights they are
    check_args(args, file)
    try:
        config = timm_config(name, **args)
        with torch.device("meta"):
            vit = create_vit(name, **args)
    except AssertionError as error:
        raise ValueError(f"{file}: timm makes no {name} of these sizes: {in_short(error)}") from None
    tokens = [token for token in ("cls_token", "dist_token", "reg_token") if getattr(vit, token, None) is not None]
    known = {"patchify.position": "pos_embed"} | {f"patchify.prefix.{i}": token for i, token in enumerate(tokens)}
    moves = []
    for ours, tensor in parameters(config, f"timm:{name}").items():
        theirs = known.get(ours) or timm_name(ours)
        stored = (1, *tensor.shape) if ours == "patchify.position" else tuple(tensor.shape)
        moves.append(same(theirs, f"tower.{ours}", tuple(tensor.shape), stored))
    return plan("timm", Checkpoint(folder, "", "the timm model"), moves, config, f"timm:{name}", TIMM_LEFT)


def timm_name(ours: str) -> str:
    """Our parameter's name in timm's model, from which its module was taken."""
    for prefix, theirs in (
        ("patchify.proj", "patch_embed.proj"),
        ("patchify.norm_pre", "norm_pre"),
        ("patchify.norm", "patch_embed.norm"),
    ):
        if ours.startswith(prefix + "."):
            return theirs + ours.removeprefix(prefix)
    return ours.replace(".block.", ".", 1)


def check_args(args: Mapping[str, Any], file: Path) -> None:
    """Raises ValueError where a timm model was made with more than other sizes."""
    for name, value in args.items():
        largest = 1 << 10 if name == "depth" else 1 << 20
        fits = type(value) in (int, float) and 0 < value < 1e3 if name == "mlp_ratio" else is_size(value, largest)
        if name not in TIMM_SIZES or not fits:
            raise ValueError(f"{file}: model_args {name} = {brief(value)} cannot be taken over: only sizes can")


def from_siglip(folder: Path) -> Plan:
    """A SigLIP model or its tower, in transformers' names."""
    file = folder / "config.json"
    said = read_object(file)
    vision = said.get("vision_config", said)
    if said.get("model_type") not in ("siglip", "siglip_vision_model") or not isinstance(vision, dict):
        raise ValueError(f"{file} does not describe a SigLIP model: its model_type is {brief(said.get('model_type'))}")
    config = siglip_config(vision, file)
    whole = Checkpoint(folder, "", "the SigLIP model")
    prefix = SIGLIP if any(name.startswith(SIGLIP) for name in whole.places) else ""
    moves = siglip_moves(parameters(config, SIGLIP_AS), prefix)
    return plan("siglip", Checkpoint(folder, prefix, "the SigLIP model"), moves, config, SIGLIP_AS, (f"{prefix}head.",))


def siglip_config(vision: Mapping[str, Any], file: Path) -> VisionConfig:
    try:
        full: Any = SiglipVisionConfig(**vision)
    except Exception as error:  # what its strict class says of a stranger's value
        raise ValueError(f"{file} does not describe a SigLIP tower: {in_short(error)}") from None
    sizes = {"image_size": full.image_size, "patch_size": full.patch_size, "width": full.hidden_size}
    sizes |= {"depth": full.num_hidden_layers, "heads": full.num_attention_heads, "mlp": full.intermediate_size}
    wrong = [name for name, value in sizes.items() if not is_size(value, 1 << 10 if name == "depth" else 1 << 20)]
    fixed = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "layer_norm_eps": 1e-6}
    wrong += [name for name, value in fixed.items() if getattr(full, name) != value]
    if wrong:
        values = {**sizes, **{name: getattr(full, name) for name in fixed}}
        said = ", ".join(f"{name} = {brief(values[name])}" for name in wrong)
        raise ValueError(f"{file} does not describe a SigLIP tower: {said}")
    width = sizes["width"]
    return VisionConfig(**sizes, embed_dim=width, glu=8 * width // 3, open_blocks=False)


def siglip_moves(ours: Mapping[str, torch.Tensor], prefix: str) -> list[Move]:
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    outer = {"patchify.proj": "embeddings.patch_embedding", "norm": "post_layernorm"}
    moves = []
    for name, tensor in ours.items():
        shape, (module, _, leaf) = tuple(tensor.shape), name.rpartition(".")
        if name == "patchify.position":
            moves.append(same(f"{prefix}embeddings.position_embedding.weight", f"tower.{name}", shape))
        elif module in outer:
            moves.append(same(f"{prefix}{outer[module]}.{leaf}", f"tower.{name}", shape))
        else:
            layer, _, inner = module.removeprefix("blocks.").partition(".block.")
            theirs = f"{prefix}encoder.layers.{layer}."
            if inner == "attn.qkv":
                third = (shape[0] // 3, *shape[1:])
                parts = [Slot(f"{theirs}self_attn.{part}_proj.{leaf}", third) for part in "qkv"]
                moves.append(joined(parts, Slot(f"tower.{name}", shape)))
            else:
                moves.append(same(f"{theirs}{names[inner]}.{leaf}", f"tower.{name}", shape))
    return moves


def parameters(config: VisionConfig, tower: str) -> dict[str, nn.Parameter]:
    """Of a tower of ours, without memory for them."""
    with torch.device("meta"):
        return dict(builder(tower)(config, 1).named_parameters())


def plan(
    name: str, checkpoint: Checkpoint, moves: list[Move], sizes: VisionConfig, tower: str, left: tuple[str, ...]
) -> Plan:
    def beside(out: Path, dtype: torch.dtype) -> None:
        config = TEFusionVisionConfig.of(sizes, tower)
        config.dtype, config.architectures = dtype, [TEFusionVisionModel.__name__]
        config.save_pretrained(out)

    return Plan(name, checkpoint, moves, beside, lambda key: key.startswith(left))
