"""What training minimises: the answer's tokens and, where the generator knows the truth, its regression.

Both objectives are modules around the model, so that DDP and FSDP see one forward a step.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from tefusion.data.examples import Batch
from tefusion.data.motion_truth import PatchTargets
from tefusion.vision import pixels
from tefusion.vlm import VLM, Reply

LIGHT = 8.0


@dataclass(frozen=True)
class Loss:
    """`right` is the share of answers whose first token is the likeliest."""

    total: Float[Tensor, ""]
    answer: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    right: Float[Tensor, ""]


def first_tokens_right(reply: Reply) -> Float[Tensor, ""]:
    first = (reply.labels >= 0).int().argmax(dim=1, keepdim=True)
    guess = reply.logits.argmax(-1).gather(1, first)
    return (guess == reply.labels.gather(1, first)).float().mean()


class VideoObjective(nn.Module):
    """A head reads each group's mean embed and regresses the group's mean trajectory; it is thrown away later."""

    def __init__(self, vlm: VLM, channels: int, weight: float):
        super().__init__()
        self.vlm, self.weight = vlm, weight
        self.head = nn.Sequential(nn.LayerNorm(vlm.boi.shape[-1]), nn.Linear(vlm.boi.shape[-1], channels))

    def forward(self, batch: Batch) -> Loss:
        if not batch.prompts:  # no example could be read: the gradient is zero, and other processes need not wait
            nothing = torch.stack([p.sum() for p in self.parameters()]).sum() * 0.0
            return Loss(nothing, nothing, nothing, nothing)
        reply = self.vlm(batch.videos, batch.prompts, batch.answers)
        auxiliary = self.trajectories(reply, batch) if self.weight else reply.loss.new_zeros(())
        return Loss(reply.loss + self.weight * auxiliary, reply.loss, auxiliary, first_tokens_right(reply))

    def trajectories(self, reply: Reply, batch: Batch) -> Float[Tensor, ""]:
        pairs = [(e, t) for e, t in zip(reply.embeds, batch.targets, strict=True) if e is not None and t is not None]
        if not pairs:
            return reply.loss.new_zeros(())
        embeds = torch.cat([reduce(e, "g m e -> g e", "mean") for e, _ in pairs])
        k = self.vlm.encoder.compressor.k
        truth = torch.cat([reduce(t, "(g k) c -> g c", "mean", k=k) for _, t in pairs])
        return (self.head(embeds).float() - truth.to(embeds.device)).square().sum(-1).mean()


@dataclass(frozen=True)
class StillBatch:
    """Clips of t frames of which one, `asked`, carries a question; all of them show their patches."""

    frames: UInt8[Tensor, "b t y x 3"]
    asked: Int[Tensor, " b"]
    prompts: list[str]
    answers: list[str]
    patches: PatchTargets


class StillObjective(nn.Module):
    """Single frames: a question, and of each patch the colour that is here, where its object's centre lies and where
    it points, and how bright its sixteenths are."""

    def __init__(self, vlm: VLM, classes: int, weight: float):
        super().__init__()
        self.vlm, self.weight, self.classes = vlm, weight, classes
        self.head = nn.Linear(vlm.encoder.tower.width, classes + 2 + 2 + 16)

    def forward(self, still: StillBatch) -> Loss:
        video = pixels(still.frames.to(self.vlm.boi.device))
        features = self.vlm.encoder.encode(video.to(self.vlm.boi))
        shown = features[torch.arange(len(features)), still.asked][:, None]
        reply = self.vlm.reply(list(self.vlm.encoder.project(shown)), still.prompts, still.answers)
        auxiliary = self.seen(rearrange(features, "b t 1 h w d -> b t h w d").float(), video, still.patches)
        return Loss(reply.loss + self.weight * auxiliary, reply.loss, auxiliary, first_tokens_right(reply))

    def seen(
        self, features: Float[Tensor, "b t h w d"], video: Float[Tensor, "b t 3 y x"], patches: PatchTargets
    ) -> Float[Tensor, ""]:
        h, w = features.shape[2:4]
        classes, vectors, light = self.head(features).split([self.classes, 4, 16], dim=-1)
        colour = F.cross_entropy(classes.flatten(0, 3), patches.classes.to(features.device).flatten())
        truth = torch.cat([patches.offsets, patches.headings], dim=-1).to(features.device)
        near = patches.near.to(features)
        wrong = (vectors - truth).square().mean(-1) * near
        bright = reduce(video, "b t c (h p y) (w q x) -> b t h w (p q)", "mean", h=h, w=w, p=4, q=4)
        # Motion of the background can only be read off what is kept of its light: it weighs most.
        return colour + wrong.sum() / near.sum().clamp(min=1) + LIGHT * F.mse_loss(light, bright)
