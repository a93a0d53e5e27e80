"""The image model that every run starts from: trained on single frames, once for each seed, model and data.

A still carries a question, and for each patch which colour is here and where the nearest object's centre lies.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from tefusion.cells import PROTOCOL, content
from tefusion.checkpoint import Checkpoints, clear, save_whole
from tefusion.config import Run, changed, digest
from tefusion.data.ahead import ahead
from tefusion.data.examples import Key
from tefusion.data.motion_augment import SYMMETRIES, Symmetry, arrange_options, turn_frames, turn_patches, turn_question
from tefusion.data.motion_still import Still, still_questions
from tefusion.data.motion_truth import PatchTargets, Truth, patch_targets
from tefusion.data.prompt import prompt
from tefusion.data.question import Question
from tefusion.data.source import Split, data_folder, load_split
from tefusion.launch import gather, is_first, wait_for_first
from tefusion.lock import locked, patiently
from tefusion.objective import StillBatch, StillObjective
from tefusion.train import accelerator, batched, create_vlm, frame_cache, ordered, read_clip
from tefusion.training import Seen, Training, fit, unseen
from tefusion.video import Decoded
from tefusion.vlm import VLM

DRAWS = 3  # questions asked of every clip, each of another frame
CLASSES = 8  # background, six colours, the white of a flash
SHARED = ["seed", "encoder", "decoder", "data", "batch", "optimizer", "muon_lr", "lr", "final_lr", "warmup"]
SHARED += ["weight_decay", "muon_decay", "clip", "auxiliary", "precision"]


def image_run(run: Run) -> Run:
    """The run that makes the image model of `run`: equal for all runs that may share it."""
    plain = Run(compressor="none", k=1, n_input=1, steps=run.image_steps, init="scratch")
    return replace(plain, **{name: getattr(run, name) for name in SHARED})


def image_weights(run: Run, home: Path, save_every: int) -> Path | None:
    """The image model that the run starts from; None where it starts from scratch. Comes before the run's own model:
    training it draws random numbers, which must not depend on who trained it."""
    if run.init == "scratch":
        return None
    return image_model(image_run(run), home, save_every)


def image_model(
    run: Run, home: Path, save_every: int, seen: Seen = unseen, waiting: Callable[[str], None] = patiently
) -> Path:
    """The file of the image model, trained now if nobody has. Sweeps that need the same one wait for the first:
    `waiting` is told whom for, every second."""
    training = Training(run, accelerator(run), seen)
    folder = data_folder(run.data, home)
    path = home / "images" / f"{digest(run, content(folder), PROTOCOL)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    training.checkpoints = Checkpoints(path.with_suffix(".checkpoints"), save_every, changed(run))
    with ExitStack() as stack:
        if is_first():
            stack.enter_context(locked(path.with_suffix(".lock"), waiting))
        if not gather([path.exists()])[0]:
            vlm = train_images(load_split(folder, "train"), home, training)
            if is_first():
                save_whole(vlm.state_dict(), path)
        if is_first():
            clear(training.checkpoints.folder)
        wait_for_first()
    return path


def train_images(split: Split, home: Path, training: Training) -> VLM:
    run = training.run
    if split.truth is None:
        raise ValueError(f"data {run.data!r} has no truth.safetensors to train an image model on; use init=scratch")
    vlm = create_vlm(run)
    stills = [s for draw in range(DRAWS) for s in still_questions(split.truth, split.questions, draw, split.shuffled)]
    # Read as the cells will read whole clips, so that both find the same entry of the cache.
    whole = replace(run, n_input=split.length)
    read = partial(read_clip, whole, frame_cache(home), (split.truth.size, split.truth.size), split.length)

    examples = StillExamples(stills, read, run.seed, split.shuffled)
    order = ordered(len(examples), run, training.accelerator)
    joined = partial(collate, split.truth, vlm.encoder.tower.patch_size)

    def feed(done: int) -> Iterable[StillBatch]:
        return ahead(batched(examples, replace(order, done=done), joined))

    fit(StillObjective(vlm, CLASSES, run.auxiliary), vlm, feed, training)
    return vlm


@dataclass(frozen=True)
class StillExample:
    """A question about one of a clip's frames; the others show their patches only."""

    key: Key
    still: Still
    frames: UInt8[Tensor, "t h w 3"]
    question: Question
    symmetry: Symmetry


@dataclass
class StillExamples(Dataset):
    stills: list[Still]
    read: Callable[[Question], Decoded]
    seed: int
    shuffled: bool

    def __len__(self) -> int:
        return len(self.stills)

    def __getitem__(self, key: Key) -> StillExample:
        epoch, place = key
        still = self.stills[place]
        rng = np.random.default_rng([self.seed, epoch, place])
        symmetry = SYMMETRIES[int(rng.integers(len(SYMMETRIES)))]
        question = arrange_options(turn_question(still.question, symmetry), rng, self.shuffled)
        frames = torch.from_numpy(turn_frames(self.read(still.question).frames, symmetry))
        return StillExample(key, still, frames, question, symmetry)


def collate(truth: Truth, patch: int, examples: Sequence[StillExample]) -> StillBatch:
    """The patches' targets are made for all clips of a batch at once."""
    clips = patch_targets(truth[[e.still.clip for e in examples]], patch)
    names = [field.name for field in fields(PatchTargets)]
    patches = [
        turn_patches(PatchTargets(*(getattr(clips, name)[i : i + 1] for name in names)), e.symmetry)
        for i, e in enumerate(examples)
    ]
    return StillBatch(
        torch.stack([e.frames for e in examples]),
        torch.tensor([e.still.frame for e in examples]),
        [prompt(e.question) for e in examples],
        [str(e.question.answer) for e in examples],
        PatchTargets(*(torch.cat([getattr(p, name) for p in patches]) for name in names)),
        [e.key for e in examples],
    )
