"""none: each frame alone (MotionBench, 2501.02955, the baseline). Three hooks, each the identity."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

LARGEST_GROUP = 256  # frames; far above what any source uses


def run_blocks(
    x: Float[Tensor, "b s n d"],
    blocks: nn.ModuleList,
    frames: int = 1,
    positions: Float[Tensor, "rows length 3"] | None = None,
) -> Float[Tensor, "b s n d"]:
    """Every block over rows of `frames` neighbouring frames, which attend to each other and to nobody else.

    `positions` are (seconds, row, column) of every token of a row, by which open blocks turn queries and keys.
    """
    more = () if positions is None else (positions,)
    batch = x.shape[0]
    x = rearrange(x, "b (g j) n d -> (b g) j n d", j=frames)
    for block in blocks:
        x = block(x, *more)
    return rearrange(x, "(b g) j n d -> b (g j) n d", b=batch)


@dataclass(frozen=True)
class Clip:
    """What tokens alone do not tell of the videos: patches down and across a frame, and when each of the t frames is
    shown, in seconds from any moment."""

    height: int
    width: int
    seconds: Float[Tensor, "b t"]


class Compressor(nn.Module):
    """k frames -> 1. A method overrides the hook at which it acts; the class itself is the identity at all three.

    `in_frames` says how many frames share the patch convolution's channels, `out_frames` how many share the
    projector's: the two integers by which the neighbours know what to expect.
    """

    source: ClassVar[str]
    stage: ClassVar[str]  # before, inside or after the encoder
    reach: ClassVar[str] = "group"  # which groups a frame may change: group, neighbours, past, clip
    control: ClassVar[bool] = False  # what a method is compared with; a sweep trains it as a run of `none`
    drops_frames: ClassVar[bool] = False  # some frames of a group are never seen
    adds_module: ClassVar[bool] = False  # a module of its own, so that k = 1 is not the baseline
    starts_as_image: ClassVar[bool] = True  # a still video gives the baseline's embeds; else what one frame gives
    owns_merge: ClassVar[bool] = False  # merges space itself, and so uses only the projector's glu
    valid_k: ClassVar[Collection[int]] = range(1, LARGEST_GROUP + 1)
    order_sensitive: bool = False
    opens_blocks: bool = False  # gives the blocks positions, or uses their attention alone: not every tower's allow it
    never_still: str = ""  # why a still video gives neither; "" where it does

    in_frames: int = 1
    out_frames: int = 1

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def pixels(self, video: Float[Tensor, "b t c height width"]) -> Float[Tensor, "b s c2 height width"]:
        return video

    def encode(self, x: Float[Tensor, "b s n d"], blocks: nn.ModuleList, clip: Clip) -> Float[Tensor, "b s2 n d"]:
        return run_blocks(x, blocks)

    def project(
        self, x: Float[Tensor, "b g j h w d"], projector: nn.Module, clip: Clip
    ) -> Float[Tensor, "b g h2 w2 e"]:
        if x.shape[2] != 1:
            raise ValueError(f"{x.shape[2]} frames are left in a group, and nothing reads them out: override `project`")
        return projector(x).squeeze(2)


class Baseline(Compressor):
    source = "MotionBench 2501.02955"
    stage = "none"
    valid_k = (1,)
