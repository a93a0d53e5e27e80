"""Questions -> training examples: read, turned and shuffled by a generator that epoch and place alone determine."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from tefusion.data.motion_augment import augment
from tefusion.data.prompt import prompt
from tefusion.data.question import Question
from tefusion.data.source import Split
from tefusion.video import Decoded, VideoError

log = logging.getLogger(__name__)
BAD_VIDEOS = 0.01  # the share of a training set that may be unreadable


@dataclass(frozen=True)
class Batch:
    videos: list[UInt8[Tensor, "_t _h _w 3"] | None]
    prompts: list[str]
    answers: list[str]
    targets: list[Float[Tensor, "_t channels"] | None]


@dataclass(frozen=True)
class Example:
    video: UInt8[Tensor, "t h w 3"] | None
    prompt: str
    answer: str
    targets: Float[Tensor, "t channels"] | None


@dataclass
class Examples(Dataset):
    """`read` decodes a question's video; None in its place asks from the text alone.

    An unreadable video is left out of its batch and counted; more than BAD_VIDEOS of the set is an error.
    """

    split: Split
    read: Callable[[Question], Decoded] | None
    seed: int
    turned: bool = False
    bad: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.split.questions)

    def __getitem__(self, key: tuple[int, int]) -> Example | None:
        epoch, place = key
        question = self.split.questions[place]
        if self.read is None:
            return Example(None, prompt(question), str(question.answer), None)
        try:
            decoded = self.read(question)
        except VideoError as error:
            self.leave_out(place, error)
            return None
        frames, targets = decoded.frames, None
        if self.split.targets is not None:
            targets = self.split.targets[place, list(decoded.indices)]
            if self.turned:
                rng = np.random.default_rng([self.seed, epoch, place])
                frames, question, targets = augment(frames, question, targets, rng)
        return Example(torch.from_numpy(frames), prompt(question), str(question.answer), targets)

    def leave_out(self, place: int, error: VideoError) -> None:
        self.bad.add(place)
        log.warning("left out of training: %s", error)
        if len(self.bad) > BAD_VIDEOS * len(self):
            raise ValueError(f"{len(self.bad)} of {len(self)} training videos cannot be read; the last one: {error}")


def collate(examples: Sequence[Example | None]) -> Batch:
    kept = [example for example in examples if example is not None]
    return Batch([e.video for e in kept], [e.prompt for e in kept], [e.answer for e in kept], [e.targets for e in kept])
