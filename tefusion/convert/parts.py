"""Published weights of single parts -> ours: Kimi K2.5's tower, Qwen2-VL's patch map and merger, VideoLLaMA2's STC."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from tefusion.choices import brief
from tefusion.compressors import create_compressor
from tefusion.compressors.qwen2_vl import Qwen2VL
from tefusion.compressors.stc import STC
from tefusion.encoders.config import VisionConfig
from tefusion.encoders.moonvit import MoonViT
from tefusion.encoders.released import Checkpoint, is_size, named
from tefusion.json_files import read_object
from tefusion.kernels import Linear
from tefusion.projector import PatchMerger
from tefusion.vision import VideoEncoder

KIMI, KIMI_PROJECTOR = "vision_tower.", "mm_projector."
KIMI_FIXED = {  # what the configuration may say, and ours is: other releases of the family differ here
    "merge_kernel_size": [2, 2],
    "merge_type": "sd2_tpool",
    "mm_projector_type": "patchmerger",
    "pos_emb_interpolation_mode": "bicubic",
    "pos_emb_type": "divided_fixed",
    "projector_hidden_act": "gelu",
    "projector_ln_eps": 1e-5,
    "video_attn_type": "spatial_temporal",
}
QWEN2_VL = "visual."
STC_PREFIX = "model.mm_projector."
REGSTAGE = {"norm1": "conv1.bn", "norm2": "conv2.bn", "norm3": "conv3.bn", "se.fc1": "se.fc1", "se.fc2": "se.fc2"}
REGSTAGE |= {f"conv{i}": f"conv{i}.conv" for i in (1, 2, 3)}
REGSTAGE |= {"shortcut.0": "downsample.conv", "shortcut.1": "downsample.bn"}


class Part(NamedTuple):
    """A published tensor, its shape there, and what makes ours of it."""

    name: str
    shape: tuple[int, ...]
    ours: Callable[[Tensor], Tensor] = lambda tensor: tensor


def load_moonvit(folder: str | Path, k: int = 4, dtype: torch.dtype | None = None) -> VideoEncoder:
    """Kimi K2.5's vision branch of a folder as published: te_fusion with readout=mean and temporal_position=sincos in
    its tower, and its own projector. Kimi joins at most 4 frames, and adds no time to a single one.

    Raises one ValueError that names the tensors that do not fit.
    """
    folder = Path(folder)
    file = folder / "config.json"
    vision = read_object(file).get("vision_config")
    known = vision if isinstance(vision, dict) else {}
    heads: Any = known.get("vt_num_attention_heads", known.get("num_attention_heads"))
    if odd := [name for name, value in KIMI_FIXED.items() if known.get(name, value) != value]:
        said = ", ".join(f"{name} = {brief(known[name])}" for name in odd)
        raise ValueError(f"{file} does not describe Kimi K2.5's tower: {said}")
    tower = Checkpoint(folder, KIMI, "Kimi K2.5's checkpoint")
    (patch_width, _, patch, _), (rows, columns, width), (mlp, _) = (
        shape_of(tower, KIMI + name, dims)
        for name, dims in (
            ("patch_embed.proj.weight", 4),
            ("patch_embed.pos_emb.weight", 3),
            ("encoder.blocks.0.mlp.fc0.weight", 2),
        )
    )
    if not is_size(heads, 1 << 20) or patch_width % heads or patch_width // heads % 4:
        raise ValueError(f"{file}: {brief(heads)} attention heads do not divide {patch_width} channels into fours")
    if rows != columns or patch_width != width:
        raise ValueError(f"{folder}: positions {rows} x {columns} of {width} channels do not fit the patch map")
    projector = Checkpoint(folder, KIMI_PROJECTOR, "Kimi K2.5's checkpoint")
    embed_dim, _ = shape_of(projector, KIMI_PROJECTOR + "proj.2.weight", 2)
    depth = depth_of(tower, KIMI + "encoder.blocks.")
    sizes = VisionConfig(rows * patch, patch, width, depth, heads, mlp, embed_dim, glu=1, scale=1.0, open_blocks=False)
    method = create_compressor(
        "te_fusion", k=k, width=width, embed_dim=embed_dim, readout="mean", temporal_position="sincos"
    )
    with torch.device("meta"):
        made, merger = MoonViT(sizes), PatchMerger(width, embed_dim, eps=1e-5)
    fill(made, tower, {name: moonvit_part(name, tensor, sizes) for name, tensor in made.named_parameters()})
    fill(merger, projector, merger_parts(merger, KIMI_PROJECTOR + "pre_norm", KIMI_PROJECTOR + "proj"))
    return VideoEncoder(made, method, merger).to(dtype or tower.dtype)


def moonvit_part(name: str, tensor: Tensor, sizes: VisionConfig) -> Part:
    inside = {"norm1": "norm0", "norm2": "norm1", "attention.qkv": "wqkv", "attention.out": "wo"}
    inside |= {"mlp.0": "mlp.fc0", "mlp.2": "mlp.fc1"}
    outer = {"patchify.proj": "patch_embed.proj", "norm": "encoder.final_layernorm"}
    module, _, leaf = name.rpartition(".")
    p = sizes.patch_size
    if name == "patchify.position":
        return Part(KIMI + "patch_embed.pos_emb.weight", (*sizes.grid, sizes.width), lambda t: t.flatten(0, 1))
    if name == "patchify.proj.weight":
        return Part(KIMI + "patch_embed.proj.weight", (sizes.width, 3, p, p), lambda t: t.flatten(1))
    if module in outer:
        return Part(f"{KIMI}{outer[module]}.{leaf}", tuple(tensor.shape))
    layer, _, module = module.removeprefix("blocks.").partition(".")
    return Part(f"{KIMI}encoder.blocks.{layer}.{inside[module]}.{leaf}", tuple(tensor.shape))


class Qwen2VLParts(NamedTuple):
    """`patches` maps the (k c p q) numbers of a patch of `compressor.pixels` to a token; `merger` is a projector."""

    compressor: Qwen2VL
    patches: Linear
    merger: PatchMerger


def load_qwen2_vl(folder: str | Path, dtype: torch.dtype | None = None) -> Qwen2VLParts:
    """What compresses in Qwen2-VL, from a folder as published. Raises one ValueError that names the tensors that do not
    fit; the encoder's blocks are not read."""
    checkpoint = Checkpoint(Path(folder), QWEN2_VL, "Qwen2-VL's checkpoint")
    width, channels, k, p, q = shape_of(checkpoint, QWEN2_VL + "patch_embed.proj.weight", 5)
    embed_dim, _ = shape_of(checkpoint, QWEN2_VL + "merger.mlp.2.weight", 2)
    with torch.device("meta"):
        patches, merger = Linear(k * channels * p * q, width, bias=False), PatchMerger(width, embed_dim)
    parts = {f"merger.{n}": part for n, part in merger_parts(merger, QWEN2_VL + "merger.ln_q", MERGER_MAPS).items()}
    parts["patches.weight"] = Part(
        QWEN2_VL + "patch_embed.proj.weight",
        (width, channels, k, p, q),
        lambda tensor: rearrange(tensor, "d c k p q -> d (k c p q)"),
    )
    both = nn.ModuleDict(OrderedDict(patches=patches, merger=merger))
    fill(both, checkpoint, parts, left_out=QWEN2_VL + "blocks.")
    both.to(dtype or checkpoint.dtype)
    return Qwen2VLParts(Qwen2VL(k), patches, merger)


MERGER_MAPS = QWEN2_VL + "merger.mlp"


def merger_parts(merger: PatchMerger, norm: str, maps: str) -> dict[str, Part]:
    names = {"norm": norm, "up": f"{maps}.0", "down": f"{maps}.2"}
    parts = {}
    for name, tensor in merger.named_parameters():
        module, _, leaf = name.partition(".")
        parts[name] = Part(f"{names[module]}.{leaf}", tuple(tensor.shape))
    return parts


class Readout(nn.Module):
    """STC's own end in place of the projector's gated unit."""

    def __init__(self, width: int, embed_dim: int):
        super().__init__()
        self.glu = nn.Sequential(Linear(width, embed_dim), nn.GELU(), Linear(embed_dim, embed_dim))


def load_stc(folder: str | Path, dtype: torch.dtype | None = None) -> tuple[STC, Readout]:
    """VideoLLaMA2's connector from a folder as published: the compressor, and the projector it is called with.

    Ours has no padding, as VideoLLaMA2.1's; the weights of both fit. Raises one ValueError that names the tensors that
    do not fit.
    """
    checkpoint = Checkpoint(Path(folder), STC_PREFIX, "VideoLLaMA2's checkpoint")
    wide, _, k, *space = shape_of(checkpoint, STC_PREFIX + "sampler.0.weight", 5)
    _, width, *_ = shape_of(checkpoint, STC_PREFIX + "s1.b1.conv1.conv.weight", 4)
    embed_dim, _ = shape_of(checkpoint, STC_PREFIX + "readout.0.weight", 2)
    if space != [2, 2]:
        raise ValueError(f"{folder}: the sampler merges {space} patches, and ours merges 2 x 2")
    layers = depth_of(checkpoint, STC_PREFIX + "s1.b", first=1)
    with torch.device("meta"):
        made, readout = STC(k, width, wide, layers), Readout(wide, embed_dim)
    parts = {f"stc.{name}": stc_part(name, tensor, k) for name, tensor in made.named_parameters()}
    for name, tensor in readout.named_parameters():
        parts[f"readout.{name}"] = Part(STC_PREFIX + name.replace("glu.", "readout."), tuple(tensor.shape))
    both = nn.ModuleDict(OrderedDict(stc=made, readout=readout))
    fill(both, checkpoint, parts)
    both.to(dtype or checkpoint.dtype)
    return made, readout


def stc_part(name: str, tensor: Tensor, k: int) -> Part:
    shape = tuple(tensor.shape)
    if name == "sampler.weight":
        stored = (shape[0], shape[1] // (4 * k), k, 2, 2)
        return Part(STC_PREFIX + "sampler.0.weight", stored, lambda t: rearrange(t, "o e k p q -> o (k p q e)"))
    if name == "sampler.bias":
        return Part(STC_PREFIX + "sampler.0.bias", shape)
    stage, block, rest = name.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    stage = {"before": "s1", "after": "s2"}[stage]
    is_map = module.startswith(("conv", "se.", "shortcut.0")) and leaf == "weight"
    kernel: tuple[int, ...] = (*shape, 1, 1) if is_map and len(shape) == 2 else shape
    return Part(f"{STC_PREFIX}{stage}.b{int(block) + 1}.{REGSTAGE[module]}.{leaf}", kernel, lambda t: t.reshape(shape))


def shape_of(checkpoint: Checkpoint, name: str, dims: int) -> tuple[int, ...]:
    """Raises ValueError where there is no such tensor, from which the sizes are read."""
    shape = checkpoint.shapes.get(name)
    if shape is None:
        checkpoint.problems.append(f"{name} is missing")
        checkpoint.complain()
        raise AssertionError(name)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"{checkpoint.title} {checkpoint.folder} does not fit: {name} is {shape}, not of {dims} sizes")
    return shape


def depth_of(checkpoint: Checkpoint, prefix: str, first: int = 0) -> int:
    """How many layers there are: numbers without a gap."""
    inside = (name.removeprefix(prefix).partition(".")[0] for name in checkpoint.shapes if name.startswith(prefix))
    found, depth = {*inside}, 0
    while str(first + depth) in found:
        depth += 1
    return depth


@torch.no_grad()
def fill(module: nn.Module, checkpoint: Checkpoint, parts: Mapping[str, Part], left_out: str | None = None) -> None:
    """Every parameter of `module`, which has no memory yet, becomes the published one. Raises one ValueError."""
    state = {}
    for name, part in parts.items():
        tensor = checkpoint.read(part.name, part.shape)
        if tensor is not None:
            state[name] = part.ours(tensor).clone(memory_format=torch.contiguous_format)
    unread = [name for name in sorted(checkpoint.unread) if left_out is None or not name.startswith(left_out)]
    checkpoint.problems += [f"{named(name)} is unexpected" for name in unread]
    checkpoint.complain()
    module.load_state_dict(state, assign=True)
