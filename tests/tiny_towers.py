"""Every supported tower at a size of milliseconds, with random weights, built in code."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SIDE, PATCH, WIDTH, DEPTH, HEADS = 16, 4, 32, 3, 2
VIT = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 48}
FRAME = (3, SIDE, SIDE)
QWEN = {"depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH, "in_channels": 3, "temporal_patch_size": 2}


@dataclass(frozen=True)
class Tiny:
    tower: nn.Module
    inputs: Callable[[Tensor], dict[str, Any]]  # frames of uniform size -> what the tower takes
    frame: tuple[int, ...]  # the shape of one frame (or time step) as `inputs` takes it
    tokens: int  # of one frame, as its attention sees them

    def features(self, frames: Tensor) -> Tensor:
        """(frames, numbers)"""
        output = self.tower(**self.inputs(frames))
        output = output if isinstance(output, Tensor) else output.last_hidden_state
        return output.reshape(len(frames), -1)

    def random(self, frames: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(frames, *self.frame, dtype=dtype, generator=torch.Generator().manual_seed(1))


def pixels(frames: Tensor) -> dict[str, Any]:
    return {"pixel_values": frames}


def spread(tower: nn.Module) -> nn.Module:
    """Weights large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.25 if parameter.ndim > 1 else 0.1))
            if "norm" in name and "weight" in name:
                parameter.add_(1)
    return tower.eval()


def frames_tower(kind: str, config: Any, tokens: int, inputs: Callable = pixels, frame: tuple = FRAME) -> Tiny:
    return Tiny(spread(getattr(transformers, kind)(config)), inputs, frame, tokens)


def siglip(prefix: str = "Siglip") -> Tiny:
    config = transformers.SiglipVisionConfig(**VIT, image_size=SIDE, patch_size=PATCH)
    return frames_tower("SiglipVisionModel", config, 16)


def siglip2() -> Tiny:
    """Two of the sixteen patches are padding, hidden by a mask."""
    config = transformers.Siglip2VisionConfig(**VIT, patch_size=PATCH, num_patches=16)

    def inputs(frames: Tensor) -> dict[str, Any]:
        mask = torch.ones(len(frames), 16, dtype=torch.int64)
        mask[:, 14:] = 0
        shapes = torch.tensor([[2, 7]]).expand(len(frames), 2)
        return {"pixel_values": frames, "pixel_attention_mask": mask, "spatial_shapes": shapes}

    return frames_tower("Siglip2VisionModel", config, 16, inputs, (16, 3 * PATCH**2))


def clip() -> Tiny:
    config = transformers.CLIPVisionConfig(**VIT, image_size=SIDE, patch_size=PATCH)
    return frames_tower("CLIPVisionModel", config, 17)


def dinov2() -> Tiny:
    config = transformers.Dinov2Config(**VIT, image_size=SIDE, patch_size=PATCH)
    return frames_tower("Dinov2Model", config, 17)


def dinov3() -> Tiny:
    config = transformers.DINOv3ViTConfig(**VIT, image_size=SIDE, patch_size=PATCH, num_register_tokens=2)
    return frames_tower("DINOv3ViTModel", config, 19)


def vit() -> Tiny:
    return frames_tower("ViTModel", transformers.ViTConfig(**VIT, image_size=SIDE, patch_size=PATCH), 17)


def internvl() -> Tiny:
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    config = InternVLVisionConfig(**VIT, image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH], use_qk_norm=True)
    return frames_tower("InternVLVisionModel", config, 17)


def idefics3() -> Tiny:
    """The right half of each frame is padding."""
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

    config = Idefics3VisionConfig(**VIT, image_size=SIDE, patch_size=PATCH)
    return Tiny(spread(Idefics3VisionTransformer(config)), half_padded, FRAME, 16)


def smolvlm() -> Tiny:
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

    config = SmolVLMVisionConfig(**VIT, image_size=SIDE, patch_size=PATCH)
    return Tiny(spread(SmolVLMVisionTransformer(config)), half_padded, FRAME, 16)


def half_padded(frames: Tensor) -> dict[str, Any]:
    mask = torch.ones(len(frames), 4, 4, dtype=torch.bool)
    mask[:, :, 2:] = False
    return {"pixel_values": frames, "patch_attention_mask": mask}


def packed(frames: Tensor, grid: Callable[[int], list[list[int]]], name: str = "hidden_states") -> dict[str, Any]:
    return {name: frames.flatten(0, 1), "grid_thw": torch.tensor(grid(len(frames)))}


def video(frames: int) -> list[list[int]]:
    return [[frames, 4, 4]]


def qwen2_vl() -> Tiny:
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    config = Qwen2VLVisionConfig(**QWEN, embed_dim=WIDTH, hidden_size=24)
    tower = spread(Qwen2VisionTransformerPretrainedModel(config))
    return Tiny(tower, functools.partial(packed, grid=video), (16, 6 * PATCH**2), 16)


def qwen2_5_vl() -> Tiny:
    """Windows of 2x2 merged tokens on a grid of 3x3, so that some are cut off."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    config = Qwen2_5_VLVisionConfig(
        **QWEN, hidden_size=WIDTH, intermediate_size=48, out_hidden_size=24, window_size=16, fullatt_block_indexes=[1]
    )
    tower = spread(Qwen2_5_VisionTransformerPretrainedModel(config))
    grid = functools.partial(packed, grid=lambda frames: [[frames, 6, 6]])
    return Tiny(tower, grid, (36, 6 * PATCH**2), 36)


def qwen3_vl() -> Tiny:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    config = Qwen3VLVisionConfig(
        **QWEN,
        hidden_size=WIDTH,
        intermediate_size=48,
        out_hidden_size=24,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
    )
    return Tiny(spread(Qwen3VLVisionModel(config)), functools.partial(packed, grid=video), (16, 6 * PATCH**2), 16)


def glm4v() -> Tiny:
    from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
    from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel

    config = Glm4vVisionConfig(**QWEN, hidden_size=WIDTH, intermediate_size=48, out_hidden_size=24, image_size=SIDE)
    grid = functools.partial(packed, grid=lambda frames: [[1, 4, 4]] * frames)
    return Tiny(spread(Glm4vVisionModel(config)), grid, (16, 6 * PATCH**2), 16)


def video_llama_3() -> Tiny:
    from transformers.models.video_llama_3.configuration_video_llama_3 import VideoLlama3VisionConfig
    from transformers.models.video_llama_3.modeling_video_llama_3 import VideoLlama3VisionModel

    config = VideoLlama3VisionConfig(**VIT, patch_size=PATCH)

    def inputs(frames: Tensor) -> dict[str, Any]:
        return {**packed(frames, video, "pixel_values"), "merge_sizes": torch.tensor([2])}

    return Tiny(spread(VideoLlama3VisionModel(config)), inputs, (16, 3 * PATCH**2), 16)


def timm_vit() -> Tiny:
    from timm.models.vision_transformer import VisionTransformer

    tower = VisionTransformer(
        SIDE, PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=0, global_pool="", reg_tokens=2
    )
    return Tiny(spread(tower), lambda frames: {"x": frames}, FRAME, 19)


def timm_eva() -> Tiny:
    from timm.models.eva import Eva

    tower = Eva(
        SIDE, PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=0, global_pool="", use_rot_pos_emb=True
    )
    return Tiny(spread(tower), lambda frames: {"x": frames}, FRAME, 17)


TINY: dict[str, Callable[[], Tiny]] = {
    "SigLIP": siglip,
    "SigLIP2": siglip2,
    "CLIP": clip,
    "DINOv2": dinov2,
    "DINOv3": dinov3,
    "ViT": vit,
    "InternVL": internvl,
    "Idefics3": idefics3,
    "SmolVLM": smolvlm,
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "GLM-4.1V": glm4v,
    "VideoLLaMA3": video_llama_3,
    "timm ViT": timm_vit,
    "timm EVA": timm_eva,
}
