"""Any timm VisionTransformer as a tower: its own blocks and norms, its patch convolution widened to k frames."""

from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tefusion.choices import nearest
from tefusion.encoders.config import VisionConfig
from tefusion.encoders.inflate import inflated_conv
from tefusion.encoders.patchify import resample_positions
from tefusion.encoders.vit import Block, Tower
from tefusion.kernels import group_attention


class TimmPatchify(nn.Module):
    """Pixels -> tokens as timm does it; other sizes than the model's own resample its positions."""

    def __init__(self, vit: VisionTransformer, frames: int):
        super().__init__()
        embed, tokens = vit.patch_embed, (vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token)
        self.patch_size, self.grid = embed.patch_size[0], embed.grid_size
        self.proj, self.norm = inflated_conv(embed.proj, frames) if frames > 1 else embed.proj, embed.norm
        self.prefix = nn.ParameterList(token for token in tokens if token is not None)
        self.position = nn.Parameter(vit.get_parameter("pos_embed").detach()[0])
        self.without_position = vit.num_prefix_tokens if vit.no_embed_class else 0
        self.with_position = vit.num_prefix_tokens - self.without_position
        self.norm_pre = vit.norm_pre

    def forward(self, x: Float[Tensor, "b s c height width"]) -> Float[Tensor, "b s n d"]:
        b, s, _, height, width = x.shape
        grid = height // self.patch_size, width // self.patch_size
        x = self.proj(rearrange(x, "b s c h w -> (b s) c h w"))
        x = self.norm(rearrange(x, "(b s) d h w -> b s (h w) d", b=b))
        x = torch.cat([*(token.expand(b, s, -1, -1) for token in self.prefix), x], dim=2)
        position = resample_positions(self.position, self.grid, grid, self.with_position)
        return self.norm_pre(x + F.pad(position, (0, 0, self.without_position, 0)))


class PackedAttention(nn.Module):
    """timm's Attention, whose parts it takes over, through the switch of `tefusion.kernels`."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.heads, self.qkv, self.norm = attention.num_heads, attention.qkv, attention.norm
        self.proj, self.proj_drop = attention.proj, attention.proj_drop

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError("a tower's attention takes no mask: a group sees all of itself")
        qkv = rearrange(self.qkv(x), "r l (three h d) -> r l three h d", three=3, h=self.heads)
        return self.proj_drop(self.proj(self.norm(rearrange(group_attention(qkv), "r l h d -> r l (h d)"))))


def is_plain(attention: Any) -> bool:
    """softmax(q k^T) v and nothing between: what norms q and k, gates or drops weights stays timm's."""
    return (
        type(attention) is Attention
        and isinstance(attention.q_norm, nn.Identity)
        and isinstance(attention.k_norm, nn.Identity)
        and getattr(attention, "gate", None) is None
        and attention.attn_drop.p == 0
    )


class TimmBlock(Block):
    def __init__(self, block: nn.Module):
        super().__init__()
        attention: Any = getattr(block, "attn", None)
        if is_plain(attention):
            block.attn = PackedAttention(attention)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[1]
        return rearrange(self.block(rearrange(x, "r f n d -> r (f n) d")), "r (f n) d -> r f n d", f=frames)


class TimmViT(Tower):
    """The tower made of a timm model's parts, which it takes over; with one frame it is `forward_features`."""

    def __init__(self, vit: VisionTransformer, frames: int = 1):
        super().__init__()
        self.patch_size, self.width, self.prefix = vit.patch_embed.patch_size[0], vit.embed_dim, vit.num_prefix_tokens
        self.patchify = TimmPatchify(vit, frames)
        self.blocks = nn.ModuleList(TimmBlock(block) for block in vit.blocks)
        self.norm = vit.norm


def create_vit(name: str, **sizes: Any) -> VisionTransformer:
    """timm's model of this name with fresh weights; `sizes` replace its own. Raises ValueError where it cannot be a
    tower."""
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{nearest(name, timm.list_models(['vit_*', 'deit*']))}")
    model = timm.create_model(name, pretrained=False, num_classes=0, **sizes)
    if isinstance(model, VisionTransformer) and type(model.patch_embed) is PatchEmbed and model.pos_embed is not None:
        return model
    made_of = f"{type(model).__name__} with {type(getattr(model, 'patch_embed', None)).__name__}"
    raise ValueError(
        f"timm:{name} is a {made_of}, but only timm's VisionTransformer with PatchEmbed and learned positions can be "
        "a tower (vit_*, deit_*, SigLIP, DINOv2)"
    )


def timm_config(name: str, **sizes: Any) -> VisionConfig:
    """The sizes of a timm model, of which `sizes` replace some; the projector behind it keeps the width. `eps` is not
    read: the norms are timm's."""
    with torch.device("meta"):
        vit = create_vit(name, **sizes)
    block, width = vit.blocks[0], vit.embed_dim
    heads: Any = next(module.num_heads for module in block.modules() if hasattr(module, "num_heads"))
    return VisionConfig(
        image_size=vit.patch_embed.img_size[0],
        patch_size=vit.patch_embed.patch_size[0],
        width=width,
        depth=len(vit.blocks),
        heads=heads,
        mlp=max(module.in_features for module in block.modules() if isinstance(module, nn.Linear)),
        embed_dim=width,
        glu=8 * width // 3,
        open_blocks=False,
    )


def timm_tower(name: str) -> Callable[[VisionConfig, int], Tower]:
    """Builds the timm model `name`, at the sizes of the configuration where they differ from its own."""

    def build(config: VisionConfig, frames: int) -> Tower:
        return TimmViT(create_vit(name, **resized(timm_config(name), config)), frames)

    return build


def resized(own: VisionConfig, config: VisionConfig) -> dict[str, Any]:
    """timm's words for the sizes in which `config` differs from the model's own."""
    words = {"image_size": "img_size", "patch_size": "patch_size", "width": "embed_dim", "depth": "depth"}
    words |= {"heads": "num_heads"}
    sizes = {word: getattr(config, name) for name, word in words.items() if getattr(config, name) != getattr(own, name)}
    if config.mlp * own.width != own.mlp * config.width:
        sizes["mlp_ratio"] = (config.mlp + 0.5) / config.width  # timm drops what is behind the point
    return sizes
