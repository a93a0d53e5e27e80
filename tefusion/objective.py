"""What training minimises: the answer's tokens and, where the generator knows the truth, its regression.

Both objectives are modules around the model, so that DDP and FSDP see one forward a part. A batch may come in parts, in
several processes or one after another: `counts` says how many answer tokens and examples a part has, `share` is what
these are of the whole batch's, and the parts' losses add up to the loss of the whole.
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
from tefusion.vlm import VLM, Reply, stacked

LIGHT = 3.5  # one over the mean square of a patch's light: it counts among the auxiliary losses as a kind of motion
VECTORS = 1.7  # the same of where a patch's object lies, and of where it points


@dataclass(frozen=True)
class Loss:
    """What a part of a batch adds to the loss of the whole; `right` is the share of answers whose first token is the
    likeliest."""

    total: Float[Tensor, ""]
    answer: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]
    right: Float[Tensor, ""]


def answer_tokens(vlm: VLM, answers: list[str]) -> float:
    """Those that a reply's loss is the mean over: an answer's own and the one that ends it."""
    return float(sum(len(vlm.ids(answer)) + 1 for answer in answers))


def first_tokens_right(reply: Reply) -> Float[Tensor, ""]:
    first = (reply.labels >= 0).int().argmax(dim=1, keepdim=True)
    guess = reply.logits.argmax(-1).gather(1, first)
    return (guess == reply.labels.gather(1, first)).float().mean()


def brightness(video: Float[Tensor, "b t c y x"], h: int, w: int) -> Float[Tensor, "b t h w 16"]:
    """How bright the sixteenths of each patch are; frames of any size."""
    grey = F.adaptive_avg_pool2d(reduce(video, "b t c y x -> b t y x", "mean"), (4 * h, 4 * w))
    return rearrange(grey, "b t (h p) (w q) -> b t h w (p q)", p=4, q=4)


class VideoObjective(nn.Module):
    """Two heads that are thrown away later: one reads each group's mean embed and regresses the group's mean
    trajectory, one keeps the light of the patches in the encoder's features (of k frames that were merged, their
    mean), since the motion of a background can be read off nothing else.

    Both need the generator's truth; other data is trained on its answers alone.
    """

    def __init__(self, vlm: VLM, channels: int, weight: float):
        super().__init__()
        self.vlm, self.weight = vlm, weight
        self.head = nn.Sequential(nn.LayerNorm(vlm.boi.shape[-1]), nn.Linear(vlm.boi.shape[-1], channels))
        self.light = nn.Linear(vlm.encoder.tower.width, 16)

    def counts(self, batch: Batch) -> Float[Tensor, "2"]:
        """Answer tokens, examples."""
        return torch.tensor([answer_tokens(self.vlm, batch.answers), float(len(batch.answers))])

    def forward(self, batch: Batch, share: Float[Tensor, "2"]) -> Loss:
        tokens, examples = share
        if not batch.prompts:  # no example could be read: the gradient is zero, and other processes need not wait
            nothing = torch.stack([p.sum() for p in self.parameters()]).sum() * 0.0
            return Loss(nothing, nothing, nothing, nothing)
        targets = [target for target in batch.targets if target is not None]
        if not self.weight or len(targets) < len(batch.targets):
            reply = self.vlm(batch.videos, batch.prompts, batch.answers, batch.seconds)
            answer = tokens * reply.loss
            return Loss(answer, answer, answer.new_zeros(()), examples * first_tokens_right(reply))
        video = pixels(torch.stack([v for v in batch.videos if v is not None]).to(self.vlm.boi.device))
        seconds = stacked(batch.seconds, video.device)
        features = self.vlm.encoder.encode(video.to(self.vlm.boi), seconds)
        embeds = self.vlm.encoder.project(features, seconds)
        reply = self.vlm.reply(list(embeds), batch.prompts, batch.answers)
        answer = tokens * reply.loss
        auxiliary = self.trajectories(embeds, torch.stack(targets)) + LIGHT * self.kept(features.float(), video)
        auxiliary = examples * auxiliary
        return Loss(answer + self.weight * auxiliary, answer, auxiliary, examples * first_tokens_right(reply))

    def trajectories(self, embeds: Float[Tensor, "b g m e"], targets: Float[Tensor, "b t c"]) -> Float[Tensor, ""]:
        guess = self.head(reduce(embeds, "b g m e -> b g e", "mean")).float()
        truth = reduce(targets.to(guess), "b (g k) c -> b g c", "mean", g=guess.shape[1])
        return (guess - truth).square().sum(-1).mean()

    def kept(self, features: Float[Tensor, "b g j h w d"], video: Float[Tensor, "b t c y x"]) -> Float[Tensor, ""]:
        guess = rearrange(self.light(features), "b g j h w n -> b (g j) h w n")
        bright = brightness(video, *features.shape[3:5])
        return F.mse_loss(guess, reduce(bright, "b (s k) h w n -> b s h w n", "mean", s=guess.shape[1]))


@dataclass(frozen=True)
class StillBatch:
    """Clips of t frames of which one, `asked`, carries a question; all of them show their patches."""

    frames: UInt8[Tensor, "b t y x 3"]
    asked: Int[Tensor, " b"]
    prompts: list[str]
    answers: list[str]
    patches: PatchTargets
    keys: list[tuple[int, int]]  # the epoch and place of each


class StillObjective(nn.Module):
    """Single frames: a question, and of each patch the colour that is here, where its object's centre lies and where
    it points, and how bright its sixteenths are."""

    def __init__(self, vlm: VLM, classes: int, weight: float):
        super().__init__()
        self.vlm, self.weight, self.classes = vlm, weight, classes
        self.head = nn.Linear(vlm.encoder.tower.width, classes + 2 + 2 + 16)

    def counts(self, still: StillBatch) -> Float[Tensor, "3"]:
        """Answer tokens, examples, patches near an object."""
        near = float(still.patches.near.sum())
        return torch.tensor([answer_tokens(self.vlm, still.answers), float(len(still.answers)), near])

    def forward(self, still: StillBatch, share: Float[Tensor, "3"]) -> Loss:
        tokens, examples, _ = share
        video = pixels(still.frames.to(self.vlm.boi.device))
        features = self.vlm.encoder.encode(video.to(self.vlm.boi))
        shown = features[torch.arange(len(features)), still.asked][:, None]
        reply = self.vlm.reply(list(self.vlm.encoder.project(shown)), still.prompts, still.answers)
        answer = tokens * reply.loss
        auxiliary = self.seen(rearrange(features, "b t 1 h w d -> b t h w d").float(), video, still.patches, share)
        return Loss(answer + self.weight * auxiliary, answer, auxiliary, examples * first_tokens_right(reply))

    def seen(
        self,
        features: Float[Tensor, "b t h w d"],
        video: Float[Tensor, "b t 3 y x"],
        patches: PatchTargets,
        share: Float[Tensor, "3"],
    ) -> Float[Tensor, ""]:
        h, w = features.shape[2:4]
        classes, vectors, light = self.head(features).split([self.classes, 4, 16], dim=-1)
        colour = F.cross_entropy(classes.flatten(0, 3), patches.classes.to(features.device).flatten())
        truth = torch.cat([patches.offsets, patches.headings], dim=-1).to(features.device)
        near = patches.near.to(features)
        wrong = (vectors - truth).square().sum(-1) * near
        vectors_wrong = VECTORS * wrong.sum() / near.sum().clamp(min=1)
        return share[1] * (colour + LIGHT * F.mse_loss(light, brightness(video, h, w))) + share[2] * vectors_wrong
