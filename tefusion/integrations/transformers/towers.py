"""The vision towers whose attention can be grouped: class name -> adapter. A new tower is one line here."""

from collections.abc import Callable
from typing import Protocol

from torch import nn

from tefusion.integrations.transformers.calls import Calls
from tefusion.integrations.transformers.frame_tower import FrameTower
from tefusion.integrations.transformers.packed_tower import PackedTower
from tefusion.integrations.transformers.timm_tower import TimmTower


class TowerAdapter(Protocol):
    def install(self, tower: nn.Module, calls: Calls) -> list[Callable[[], None]]:
        """Puts groups of frames into the tower's attention; calling what it returns takes them out again."""


TOWERS: dict[str, TowerAdapter] = {
    "SiglipVisionModel": FrameTower("encoder", "encoder.layers", "self_attn"),
    "Siglip2VisionModel": FrameTower("encoder", "encoder.layers", "self_attn"),
    "CLIPVisionModel": FrameTower("encoder", "encoder.layers", "self_attn"),
    "Dinov2Model": FrameTower("encoder", "encoder.layer|encoder.layers", "attention"),
    "DINOv3ViTModel": FrameTower("model", "model.layer|model.layers", "attention"),
    "ViTModel": FrameTower("embeddings", "layers|encoder.layer", "attention", leaves_before="layernorm"),
    "InternVLVisionModel": FrameTower("encoder", "encoder.layer|encoder.layers", "attention"),
    "Idefics3VisionTransformer": FrameTower("encoder", "encoder.layers", "self_attn"),
    "SmolVLMVisionTransformer": FrameTower("encoder", "encoder.layers", "self_attn"),
    "Qwen2VisionTransformerPretrainedModel": PackedTower(),
    "Qwen2_5_VisionTransformerPretrainedModel": PackedTower(windows=True),
    "Qwen3VLVisionModel": PackedTower(),
    "Glm4vVisionModel": PackedTower(frame_rows=True),
    "VideoLlama3VisionModel": PackedTower(),
    "VisionTransformer": TimmTower(),
    "Eva": TimmTower(),
}


def adapter_of(module: nn.Module) -> TowerAdapter | None:
    """The adapter of this module's class, or of one that it is derived from."""
    return next((TOWERS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in TOWERS), None)


def find_tower(module: nn.Module) -> nn.Module:
    """The one supported tower that `module` is or holds. Raises ValueError naming what was looked for."""
    found = [part for part in module.modules() if adapter_of(part) is not None]
    if len(found) != 1:
        held = "holds none of them" if not found else f"holds {len(found)} of them"
        raise ValueError(
            f"{type(module).__name__} is no vision tower that group attention knows, and {held}; looked for a module "
            f"of class {', '.join(sorted(TOWERS))}"
        )
    return found[0]
