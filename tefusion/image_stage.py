"""The image model that every run starts from: trained on single frames, once for each seed, model and data.

A still carries a question, and for each patch which colour is here and where the nearest object's centre lies.
"""

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tefusion.cells import PROTOCOL, content
from tefusion.checkpoint import save_whole
from tefusion.config import Run, digest
from tefusion.data.motion_augment import SYMMETRIES, Symmetry, arrange_options, turn_frames, turn_patches, turn_question
from tefusion.data.motion_still import Still, still_questions
from tefusion.data.motion_truth import PatchTargets, Truth, patch_targets
from tefusion.data.order import Order
from tefusion.data.prompt import prompt
from tefusion.data.question import Question
from tefusion.data.source import Split, data_folder, load_split
from tefusion.objective import StillBatch, StillObjective
from tefusion.train import Seen, accelerator, create_vlm, fit, frame_cache, read_clip, unseen
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


def image_weights(run: Run, home: Path) -> Path | None:
    """The image model that the run starts from; None where it starts from scratch. Comes before the run's own model:
    training it draws random numbers, which must not depend on who trained it."""
    if run.init == "scratch":
        return None
    return image_model(image_run(run), home, accelerator(image_run(run)))


def image_model(run: Run, home: Path, accelerator: Accelerator, seen: Seen = unseen) -> Path:
    """The file of the image model, trained now if nobody has. Sweeps that need the same one wait for the first."""
    folder = data_folder(run.data, home)
    path = home / "images" / f"{digest(run, content(folder), PROTOCOL)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(locked(path.with_suffix(".lock")))
        there = broadcast_object_list([path.exists()])[0]
        if not there:
            vlm = train_images(run, load_split(folder, "train"), home, accelerator, seen)
            if accelerator.is_main_process:
                save_whole(vlm.state_dict(), path)
        accelerator.wait_for_everyone()
    return path


def train_images(run: Run, split: Split, home: Path, accelerator: Accelerator, seen: Seen) -> VLM:
    if split.truth is None:
        raise ValueError(f"data {run.data!r} has no truth.safetensors to train an image model on; use init=scratch")
    vlm = create_vlm(run)
    stills = [s for draw in range(DRAWS) for s in still_questions(split.truth, split.questions, draw, split.shuffled)]
    # Read as the cells will read whole clips, so that both find the same entry of the cache.
    whole = replace(run, n_input=split.length)
    read = partial(read_clip, whole, frame_cache(home), (split.truth.size, split.truth.size), split.length)

    examples = StillExamples(stills, read, run.seed, split.shuffled)
    ranks = accelerator.process_index, accelerator.num_processes
    order = Order(len(examples), run.batch, run.steps, run.seed, 1, *ranks)
    joined = partial(collate, split.truth, vlm.encoder.tower.patch_size)
    batches = DataLoader(examples, batch_sampler=order, collate_fn=joined)
    fit(StillObjective(vlm, CLASSES, run.auxiliary), vlm, batches, run, accelerator, seen)
    return vlm


@dataclass(frozen=True)
class StillExample:
    """A question about one of a clip's frames; the others show their patches only."""

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

    def __getitem__(self, key: tuple[int, int]) -> StillExample:
        epoch, place = key
        still = self.stills[place]
        rng = np.random.default_rng([self.seed, epoch, place])
        symmetry = SYMMETRIES[int(rng.integers(len(SYMMETRIES)))]
        question = arrange_options(turn_question(still.question, symmetry), rng, self.shuffled)
        return StillExample(
            still, torch.from_numpy(turn_frames(self.read(still.question).frames, symmetry)), question, symmetry
        )


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
    )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The lock goes with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
