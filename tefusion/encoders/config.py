"""The sizes of an encoder, and the presets that have a name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionConfig:
    """`image_size` is the side in pixels for which positions are stored; other sizes resample them.

    `glu` is the hidden width of the projector's gated unit. Embeds are divided by `scale` on their way out.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp: int
    embed_dim: int
    glu: int
    scale: float = 8.0
    eps: float = 1e-6
    open_blocks: bool = True  # whether a method may reach inside the blocks: GLM-4V's, not timm's

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size // self.patch_size, self.image_size // self.patch_size


PRESETS = {
    "micro": VisionConfig(image_size=32, patch_size=16, width=64, depth=4, heads=2, mlp=128, embed_dim=64, glu=128),
    "fine": VisionConfig(image_size=32, patch_size=4, width=32, depth=3, heads=2, mlp=64, embed_dim=64, glu=128),
    "tiny": VisionConfig(image_size=32, patch_size=8, width=64, depth=4, heads=4, mlp=256, embed_dim=64, glu=128),
    "small": VisionConfig(image_size=64, patch_size=8, width=128, depth=6, heads=4, mlp=512, embed_dim=128, glu=256),
    "base": VisionConfig(
        image_size=224, patch_size=16, width=768, depth=12, heads=12, mlp=3072, embed_dim=768, glu=2048
    ),
    "glm4v-9b": VisionConfig(
        image_size=224, patch_size=14, width=1792, depth=63, heads=16, mlp=15360, embed_dim=4096, glu=13696
    ),
}
