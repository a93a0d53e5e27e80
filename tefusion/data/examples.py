"""Questions -> training examples: read, turned and shuffled by a generator that epoch and place alone determine."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from tefusion.data.motion_augment import augment
from tefusion.data.prompt import prompt
from tefusion.data.question import Question
from tefusion.data.source import Split
from tefusion.resize import resize
from tefusion.video import Decoded, VideoError

log = logging.getLogger(__name__)
BAD_VIDEOS = 0.01  # the share of a training set that may be unreadable


Key = tuple[int, int]  # epoch and place: what an example is determined by


class Unread(NamedTuple):
    """An example that could not be read, and why."""

    key: Key
    video: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """`keys` are those of all its examples, the unread ones included."""

    videos: list[UInt8[Tensor, "_t _h _w 3"] | None]
    prompts: list[str]
    answers: list[str]
    targets: list[Float[Tensor, "_t channels"] | None]
    seconds: list[Float[Tensor, " _t"] | None]  # when the frames of each are shown
    keys: list[Key]
    unread: list[Unread]


@dataclass(frozen=True)
class Example:
    key: Key
    video: UInt8[Tensor, "t h w 3"] | None
    prompt: str
    answer: str
    targets: Float[Tensor, "t channels"] | None
    seconds: Float[Tensor, " t"] | None


@dataclass
class Examples(Dataset):
    """`read` decodes a question's video; None in its place asks from the text alone. `size` is what a run sees: clips
    that are turned are read square and get it afterwards.

    An unreadable video is left out of its batch, which names it: `within_budget` counts them over all workers.
    """

    split: Split
    read: Callable[[Question], Decoded] | None
    size: tuple[int, int]
    seed: int
    turned: bool = False

    def __len__(self) -> int:
        return len(self.split.questions)

    def __getitem__(self, key: Key) -> Example | Unread:
        epoch, place = key
        question = self.split.questions[place]
        if self.read is None:
            return Example(key, None, prompt(question), str(question.answer), None, None)
        try:
            decoded = self.read(question)
        except VideoError as error:
            return Unread(key, str(question.video), str(error))
        frames, targets = decoded.frames, None
        if self.split.targets is not None:
            targets = self.split.targets[place, list(decoded.indices)]
            if self.turned:
                rng = np.random.default_rng([self.seed, epoch, place])
                frames, question, targets = augment(frames, question, targets, rng, self.split.shuffled)
        video = torch.from_numpy(frames)
        if video.shape[1:3] != self.size:
            video = resize(video, self.size)
        return Example(key, video, prompt(question), str(question.answer), targets, torch.tensor(decoded.seconds))


def collate(examples: Sequence[Example | Unread]) -> Batch:
    kept = [example for example in examples if isinstance(example, Example)]
    unread = [example for example in examples if isinstance(example, Unread)]
    videos, prompts, answers = [e.video for e in kept], [e.prompt for e in kept], [e.answer for e in kept]
    targets, seconds = [e.targets for e in kept], [e.seconds for e in kept]
    return Batch(videos, prompts, answers, targets, seconds, [e.key for e in examples], unread)


def within_budget(batches: Iterable[Batch], examples: int, unread: set[str]) -> Iterator[Batch]:
    """Passes the batches on and collects the videos that were left out; more than BAD_VIDEOS of `examples` raises
    ValueError."""
    for batch in batches:
        for _, video, reason in batch.unread:
            if video not in unread:
                unread.add(video)
                log.warning("left out of training: %s", reason)
            if len(unread) > BAD_VIDEOS * examples:
                raise ValueError(f"{len(unread)} of {examples} training videos cannot be read; the last one: {reason}")
        yield batch
