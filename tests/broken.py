"""Compressors and encoders that break the contract, each in one way; the check beside it must reject it."""

import torch
import torch.nn.functional as F
from contract import (
    check_batch,
    check_bf16,
    check_division,
    check_gradients,
    check_locality,
    check_one_frame,
    check_order,
    check_recompute,
    check_stage,
    check_still,
    check_tokens,
    check_wrong_k,
)
from einops import rearrange, reduce, repeat
from torch import nn

from tefusion.compressors.base import Clip, Compressor, run_blocks
from tefusion.compressors.cell_tokens import cells, spread
from tefusion.compressors.fewer_frames import FewerFrames
from tefusion.compressors.image_grid import ImageGrid
from tefusion.compressors.kangaroo import Kangaroo
from tefusion.compressors.lower_resolution import LowerResolution
from tefusion.compressors.pllava import PLLaVA
from tefusion.compressors.pvc import PVC
from tefusion.compressors.qformer import QFormer
from tefusion.compressors.qwen2_vl import Qwen2VL
from tefusion.compressors.region import Region
from tefusion.compressors.resampler3d import Resampler3D
from tefusion.compressors.ssm import SSM
from tefusion.compressors.stc import STC
from tefusion.compressors.stp import STP
from tefusion.compressors.te_factor import TEFactor
from tefusion.compressors.te_fusion import TEFusion
from tefusion.compressors.te_interleave import TEInterleave
from tefusion.compressors.te_pyramid import TEPyramid
from tefusion.compressors.te_shift import TEShift
from tefusion.compressors.tome_clip import ToMeClip, head_mean, merge_tokens, rows
from tefusion.compressors.tpool import TPool
from tefusion.compressors.wap import WAP
from tefusion.vision import VideoEncoder


class StridedPixels(Qwen2VL):
    """Frames 0, g, 2g, ... make a group instead of neighbours."""

    def pixels(self, video):
        return rearrange(video, "b (k g) c height width -> b g (k c) height width", k=self.k)


class StridedGroups(PLLaVA):
    def project(self, x, projector, clip):
        return super().project(rearrange(x, "b g k h w d -> b (k g) h w d").unflatten(1, x.shape[1:3]), projector, clip)


class LeakyGroups(TEFusion):
    """Attention over the whole clip."""

    def encode(self, x, blocks, clip):
        x = rearrange(x, "b (g k) n d -> b g k n d", k=self.k) + self.position
        return run_blocks(rearrange(x, "b g k n d -> b (g k) n d"), blocks, frames=x.shape[1] * self.k)


class FirstFrameOnly(PLLaVA):
    def project(self, x, projector, clip):
        return projector(x[:, :, 0])


class MeanOfVideos(PLLaVA):
    """The mean over the wrong axis: the batch."""

    def project(self, x, projector, clip):
        y = super().project(x, projector, clip)
        return y + reduce(y, "b g h w e -> 1 g h w e", "mean")


class MeanOfGroups(PLLaVA):
    """The mean over the wrong axis: k takes the place of g."""

    def project(self, x, projector, clip):
        return reduce(projector(x), "b g k h w e -> b k h w e", "mean")


class ColumnsOfRows(PLLaVA):
    """The mean over the wrong axis: the rows of a frame."""

    def project(self, x, projector, clip):
        y = super().project(x, projector, clip)
        return repeat(reduce(y, "b g h w e -> b g w e", "mean"), "b g w e -> b g h w e", h=y.shape[3])


class ForgottenMerge(PLLaVA):
    def __init__(self, k: int, width: int, embed_dim: int):
        super().__init__(k)
        self.widen = nn.Linear(width, embed_dim)

    def project(self, x, projector, clip):
        return reduce(projector.glu(self.widen(x)), "b g k h w e -> b g h w e", "mean")


class PaddedTokens(PLLaVA):
    """One more row and column than stated, as a padded convolution makes them."""

    def project(self, x, projector, clip):
        return F.pad(super().project(x, projector, clip), (0, 0, 0, 1, 0, 1))


class ChannelsFirst(Qwen2VL):
    """(c k) where the widened weights expect (k c)."""

    def pixels(self, video):
        return rearrange(video, "b (g k) c height width -> b g (c k) height width", k=self.k)


class WidthFirst(TEFusion):
    """(d k) where the widened weights expect (k d)."""

    def project(self, x, projector, clip):
        return projector(rearrange(x, "b g k h w d -> b g h w (d k)"))


class WidthFirstMLP(Kangaroo):
    def project(self, x, projector, clip):
        return projector(self.mlp(rearrange(x, "b g k h w d -> b g h w (d k)")))


class SumOfFrames(PLLaVA):
    def project(self, x, projector, clip):
        return reduce(projector(x), "b g k h w e -> b g h w e", "sum")


class MovedStart(TEFusion):
    """Temporal positions that do not start at zero."""

    def __init__(self, k: int, width: int):
        super().__init__(k, width, position_std=0.02)


class MovedScratch(QFormer):
    def __init__(self, k: int, embed_dim: int, grid: tuple[int, int]):
        super().__init__(k, embed_dim, grid, position_std=0.5)


class AddsQuietly(PLLaVA):
    """A module of its own that it does not declare."""

    def __init__(self, k: int, embed_dim: int):
        super().__init__(k)
        self.norm = nn.LayerNorm(embed_dim)

    def project(self, x, projector, clip):
        return self.norm(super().project(x, projector, clip))


class SaysAfter(TEFusion):
    stage = "after"


class SaysInside(PLLaVA):
    stage = "inside"


class PixelsInside(PLLaVA):
    """Touches pixels, and says that it acts after the encoder."""

    def pixels(self, video):
        return video.flip(-1)


class NoPositions(QFormer):
    """Temporal positions that are never added: order is lost."""

    def project(self, x, projector, clip):
        x = projector(x)
        keys = rearrange(x, "b g k h w e -> (b g) (k h w) e")
        queries = repeat(self.queries, "m e -> r m e", r=len(keys))
        for layer in self.layers:
            queries = layer(queries, keys)
        return queries.unflatten(1, self.merged).unflatten(0, x.shape[:2])


class MeanFusion(TEFusion):
    """Group attention without positions and a mean: blind to order, and says that it sees it."""

    order_sensitive = True

    def __init__(self, k: int):
        Compressor.__init__(self, k)

    def encode(self, x, blocks, clip):
        return run_blocks(x, blocks, frames=self.k)

    def project(self, x, projector, clip):
        return projector(reduce(x, "b g k h w d -> b g h w d", "mean"))


class SeesQuietly(Kangaroo):
    order_sensitive = False


class UnaddedPositions(TEFusion):
    def encode(self, x, blocks, clip):
        return run_blocks(x, blocks, frames=self.k)


class Idle(PLLaVA):
    """A parameter that nothing reads."""

    def __init__(self, k: int, width: int):
        super().__init__(k)
        self.idle = nn.Linear(width, width)


class IdleBias(PLLaVA):
    """A parameter that a softmax cancels: its gradient is rounding."""

    valid_k = (4,)

    def __init__(self, k: int):
        super().__init__(k)
        self.bias = nn.Parameter(torch.zeros(1))

    def project(self, x, projector, clip):
        y = projector(x)
        weights = torch.softmax(reduce(y, "b g k h w e -> b g k 1 1 1", "mean") + self.bias, dim=2)
        return (weights * y).sum(2)


class Detached(Kangaroo):
    def project(self, x, projector, clip):
        return projector(self.mlp(rearrange(x, "b g k h w d -> b g h w (k d)").detach()))


class Renamed(Kangaroo):
    """Kangaroo under a new name, its parameters renamed too."""

    def __init__(self, k: int, width: int):
        super().__init__(k, width)
        self.mixer = self._modules.pop("mlp")

    def project(self, x, projector, clip):
        return projector(self.mixer(x.movedim(2, -2).flatten(-2)))


class SameMean(PLLaVA):
    """PLLaVA written another way."""

    def project(self, x, projector, clip):
        return projector(x).sum(2) / self.k


class Forgetful(TEFusion):
    """Group attention held outside the blocks: it is gone when the backward pass runs them again."""

    def encode(self, x, blocks, clip):
        x = rearrange(x, "b (g k) n d -> b g k n d", k=self.k) + self.position
        x = rearrange(x, "b g k n d -> b (g k) n d")
        hooks = [block.register_forward_pre_hook(self.regroup) for block in blocks]
        hooks += [block.register_forward_hook(self.ungroup) for block in blocks]
        x = run_blocks(x, blocks)
        for hook in hooks:
            hook.remove()
        return x

    def regroup(self, block, args):
        return (rearrange(args[0], "(g k) 1 n d -> g k n d", k=self.k),)

    def ungroup(self, block, args, y):
        return rearrange(y, "g k n d -> (g k) 1 n d")


class SinglePrecision(PLLaVA):
    def project(self, x, projector, clip):
        return super().project(x, projector, clip).float()


class GraphBreak(PLLaVA):
    def project(self, x, projector, clip):
        y = super().project(x, projector, clip)
        return y if y.sum().item() < 1e9 else -y


class AnyK(Compressor):
    """Nothing is refused."""

    source, stage = "nowhere", "after"

    class Everything:
        def __contains__(self, k):
            return True

        def __iter__(self):
            return iter((1, 2))

        def __getitem__(self, i):
            return (1, 2)[i]

    valid_k = Everything()


class WrappedShift(TEShift):
    """The half groups at both ends meet: the end of a clip comes before its beginning."""

    reach = "neighbours"

    def run(self, x, blocks, frames, clip):
        x = run_blocks(x, blocks[:1], self.k)
        return run_blocks(x.roll(self.k // 2, 1), blocks[1:], self.k).roll(-(self.k // 2), 1)


class FarSight(PVC):
    """Attention over time that is not causal: the past hears of what comes after it."""

    def __init__(self, k: int, width: int, depth: int, heads: int):
        super().__init__(k, width, depth, heads)
        for timed in self.timed:
            timed.attention.causal = False


class OpenGate(TEFactor):
    """The branch is let in from the start."""

    def __init__(self, k: int, width: int, depth: int, heads: int):
        super().__init__(k, width, depth, heads)
        for gate in self.gates:
            nn.init.ones_(gate)


class SumOfPair(TEPyramid):
    """Two frames merge as their sum."""

    def __init__(self, k: int, width: int, depth: int):
        super().__init__(k, width, depth)
        for merge in self.merges:
            nn.init.eye_(merge.weight[:, :width].data)


class NeverFuses(TEInterleave):
    """No block is the one that fuses."""

    def run(self, x, blocks, frames, clip):
        return run_blocks(x, blocks)


class BlindRegisters(TEFusion):
    """Read out by the mean without positions, and says that it sees order."""

    def __init__(self, k: int, width: int):
        super().__init__(k, width, readout="registers", temporal_position="none")
        self.order_sensitive = True


class StillGrid(ImageGrid):
    """Says that a still video is an image."""

    never_still = property(lambda self: "", lambda self, value: None)


class NoFrames(FewerFrames):
    """Nothing of a video is seen."""

    def pixels(self, video):
        return torch.zeros_like(super().pixels(video))


class DropsQuietly(FewerFrames):
    drops_frames = False


class SaysItDrops(PLLaVA):
    drops_frames = True


class FullResolution(LowerResolution):
    """Frames keep their size: k times the tokens."""

    def pixels(self, video):
        return video

    def project(self, x, projector, clip):
        return rearrange(projector(x), "b g k h w e -> b g (k h) w e")


class SameFrame(LowerResolution):
    """k copies of one frame, as small as all of them would be."""

    def pixels(self, video):
        return super().pixels(repeat(video[:, :: self.k], "b g c y x -> b (g k) c y x", k=self.k))


class ChannelsOnTime(TPool):
    """A view that puts channels on the time axis."""

    def project(self, x, projector, clip):
        return projector(rearrange(x, "b g k h w d -> b g h w (k d)").unflatten(-1, (-1, self.k)).mean(-1))


class SumOfCell(WAP):
    """The weights of a cell add up to k."""

    def weigh(self, x):
        return self.k * super().weigh(x)


class AcrossCells(Region):
    """The softmax runs along the row of cells, not within one."""

    def project(self, x, projector, clip):
        x = cells(x)
        mean = x.mean(-2)
        scores = (self.query(mean)[..., None, :] * self.key(x)).sum(-1) / x.shape[-1] ** 0.5
        return projector(spread(mean + (scores.softmax(-2)[..., None] * x).sum(-2)))


class SimilarityOrder(ToMeClip):
    """What is left stands in the order of how well it merged, not of where it was."""

    def project(self, x, projector, clip):
        merged = projector.merge(x)
        tokens = merge_tokens(rearrange(merged, "b g k h w e -> (b g) (h w k) e"), merged.shape[3] * merged.shape[4])
        best = head_mean(tokens).norm(dim=-1).argsort(dim=-1)
        tokens = tokens.gather(1, rows(best, tokens))
        return projector.glu(rearrange(tokens, "(b g) (h w) e -> b g h w e", b=len(x), h=merged.shape[3]))


class PaddedSampler(STC):
    """The original's convolution, which pads by one."""

    def sample(self, x):
        return super().sample(F.pad(x, (0, 0, 1, 1, 1, 1)))


class RampedPool(STP):
    """Later frames weigh more, in a pool that says it does not see order."""

    def sample(self, x):
        ramp = torch.arange(self.k, dtype=x.dtype, device=x.device)[:, None, None, None]
        return super().sample(x * (1 + ramp - ramp.mean()))


class Timeless(Resampler3D):
    """Keys that never hear when a frame is shown."""

    def project(self, x, projector, clip):
        return super().project(x, projector, Clip(clip.height, clip.width, torch.zeros_like(clip.seconds)))


class ScanOfVideos(SSM):
    """The videos of a batch are one sequence."""

    def mix(self, x):
        return super().mix(x.flatten(0, 1)[None]).view_as(x)


class NearScan(SSM):
    """A scan of the whole clip that says it keeps to the group."""

    reach = "group"


class OpenScan(SSM):
    """The scan is let in from the start."""

    def __init__(self, k: int, width: int):
        super().__init__(k, width)
        nn.init.eye_(self.out.weight)


class LyingCount(VideoEncoder):
    """Rounds up where the convolution drops the odd row and column."""

    def tokens_out(self, frames: int, height: int, width: int) -> int:
        h, w = self.grid(height, width)
        return self.groups(frames) * -(-h // 2) * -(-w // 2)


class Lenient(VideoEncoder):
    """Drops the frames that are left over."""

    def forward(self, video):
        return super().forward(video[:, : video.shape[1] // self.compressor.k * self.compressor.k])


BROKEN = [
    (check_tokens, MeanOfGroups, "makes"),
    (check_tokens, ForgottenMerge, "makes"),
    (check_tokens, PaddedTokens, "makes"),
    (check_tokens, LyingCount, "promises"),
    (check_wrong_k, AnyK, "taken without a word"),
    (check_locality, StridedPixels, "does not change its own group"),
    (check_locality, StridedGroups, "does not change its own group"),
    (check_locality, LeakyGroups, "changes groups"),
    (check_locality, FirstFrameOnly, "does not change its own group"),
    (check_locality, MeanOfVideos, "changes another video"),
    (check_one_frame, MovedStart, "not the baseline"),
    (check_one_frame, AddsQuietly, "not the baseline"),
    (check_one_frame, ColumnsOfRows, "not the baseline"),
    (check_still, ChannelsFirst, "away from an image"),
    (check_still, WidthFirst, "away from an image"),
    (check_still, WidthFirstMLP, "away from an image"),
    (check_still, SumOfFrames, "away from an image"),
    (check_still, MovedStart, "away from an image"),
    (check_still, MovedScratch, "away from an image"),
    (check_still, ColumnsOfRows, "away from an image"),
    (check_stage, SaysAfter, "meets frames"),
    (check_stage, SaysInside, "meets frames"),
    (check_stage, PixelsInside, "pixels changed"),
    (check_order, NoPositions, "claims to see order"),
    (check_order, MeanFusion, "claims to see order"),
    (check_order, SeesQuietly, "claims not to see order"),
    (check_gradients, NoPositions, "no gradient"),
    (check_gradients, UnaddedPositions, "no gradient"),
    (check_gradients, Idle, "no gradient"),
    (check_gradients, IdleBias, "only"),
    (check_gradients, Detached, "no gradient"),
    (check_batch, MeanOfVideos, "a batch differs"),
    (check_division, Lenient, "taken without a word"),
    (check_recompute, Forgetful, "another gradient"),
    (check_locality, WrappedShift, "changes groups"),
    (check_locality, FarSight, "changes groups"),
    (check_still, OpenGate, "away from an image"),
    (check_still, SumOfPair, "away from an image"),
    (check_still, StillGrid, "away from an image"),
    (check_stage, NeverFuses, "meets frames"),
    (check_order, BlindRegisters, "claims to see order"),
    (check_locality, NoFrames, "frames change nothing"),
    (check_locality, DropsQuietly, "does not change its own group"),
    (check_locality, SaysItDrops, "says that it drops"),
    (check_locality, SameFrame, "does not change its own group"),
    (check_tokens, FullResolution, "makes"),
    (check_still, ChannelsOnTime, "away from an image"),
    (check_still, SumOfCell, "away from an image"),
    (check_still, AcrossCells, "away from an image"),
    (check_still, SimilarityOrder, "away from an image"),
    (check_tokens, PaddedSampler, "makes"),
    (check_order, RampedPool, "claims not to see order"),
    (check_order, Timeless, "claims to see order"),
    (check_batch, ScanOfVideos, "a batch differs"),
    (check_locality, ScanOfVideos, "changes another video"),
    (check_locality, NearScan, "changes groups"),
    (check_still, OpenScan, "away from an image"),
    (check_bf16, SinglePrecision, "the output is"),
]
COPIES = {Renamed: "kangaroo", SameMean: "pllava"}
