"""The configuration of a whole model: encoder, compressor, decoder. A value of the wrong type is refused."""

from dataclasses import asdict, field
from dataclasses import fields as fields_of
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from tefusion.choices import brief, nearest
from tefusion.compressors import COMPRESSORS, check_k, options_of
from tefusion.config import choose
from tefusion.encoders import PRESETS, VisionConfig

LARGEST = {"depth": 1 << 10}  # of an encoder's sizes; the others end at 2**20, far above any tower's


@strict
class TEFusionVisionConfig(PreTrainedConfig):
    """The sizes of `tefusion.encoders.VisionConfig`, and which tower has them: "glm4v", or "timm:<name>" for a timm ViT
    whose own sizes these replace."""

    model_type: ClassVar[str] = "tefusion_vision"
    base_config_key: ClassVar[str] = "vision_config"

    tower: str = "glm4v"
    image_size: int = PRESETS["tiny"].image_size
    patch_size: int = PRESETS["tiny"].patch_size
    width: int = PRESETS["tiny"].width
    depth: int = PRESETS["tiny"].depth
    heads: int = PRESETS["tiny"].heads
    mlp: int = PRESETS["tiny"].mlp
    embed_dim: int = PRESETS["tiny"].embed_dim
    glu: int = PRESETS["tiny"].glu
    scale: float | int = PRESETS["tiny"].scale
    eps: float | int = PRESETS["tiny"].eps

    @classmethod
    def of(cls, sizes: VisionConfig, tower: str = "glm4v") -> "TEFusionVisionConfig":
        known = asdict(sizes)
        del known["open_blocks"]  # the tower's kind says it
        return cls(tower=tower, **known)

    @property
    def sizes(self) -> VisionConfig:
        known = {f.name: getattr(self, f.name) for f in fields_of(VisionConfig) if f.name != "open_blocks"}
        return VisionConfig(**known, open_blocks=self.tower == "glm4v")

    def validate_sizes(self) -> None:
        if self.tower != "glm4v" and not self.tower.startswith("timm:"):
            raise ValueError(f"tower {brief(self.tower)} is unknown{nearest(self.tower, ['glm4v', 'timm:<name>'])}")
        for name in ("image_size", "patch_size", "width", "depth", "heads", "mlp", "embed_dim", "glu"):
            most = LARGEST.get(name, 1 << 20)
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from 1 to {most}, got {getattr(self, name)}")
        for name in ("scale", "eps"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if min(self.sizes.grid) < 2:
            raise ValueError(f"image_size {self.image_size} is smaller than 2x2 patches of {self.patch_size} pixels")


@strict
class TEFusionConfig(PreTrainedConfig):
    """`compressor_options` are the method's own. `video_token_id` marks in `input_ids` where the embeds of a video go;
    that id's own embedding is never read."""

    model_type: ClassVar[str] = "tefusion"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": TEFusionVisionConfig, "text_config": AutoConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    compressor: str = "none"
    k: int = 1
    compressor_options: dict = field(default_factory=dict)
    video_token_id: int = 0

    def __post_init__(self, **kwargs):
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = TEFusionVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            text = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(text.pop("model_type", "glm"), **text)
        super().__post_init__(**kwargs)

    def validate_method(self) -> None:
        choose("compressor", self.compressor, COMPRESSORS)
        check_k(self.compressor, self.k)
        for option in self.compressor_options:
            if option not in options_of(self.compressor):
                raise ValueError(f"{self.compressor} has no option {brief(option)}")
