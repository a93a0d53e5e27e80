"""Where a run's questions come from: the generated motion set, or a folder with the same splits."""

import os
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from tefusion.choices import brief, nearest
from tefusion.data.motion import write_motion
from tefusion.data.motion_files import CATEGORIES
from tefusion.data.motion_sets import MOTION_SETS, motion_set
from tefusion.data.motion_truth import Truth, load_truth, motion_targets, weighed
from tefusion.data.motionbench import ANNOTATIONS, read_motionbench
from tefusion.data.question import LETTERS, Question
from tefusion.json_files import read_object


@dataclass(frozen=True)
class Split:
    """Questions, and for generated clips the truth in the same order and the training targets made of it."""

    questions: list[Question]
    shuffled: bool = True  # whether their options come in any order
    length: int = 0  # frames of every clip, where they are all alike and few
    truth: Truth | None = None
    targets: Float[Tensor, "clips t channels"] | None = None


def data_folder(data: str, home: Path) -> Path:
    """The folder of a named set, written if it is not there yet, or the folder that `data` is."""
    if settings := motion_set(data):
        return write_motion(home / "data" / data, settings)
    check_data(data)
    return Path(data)


def check_data(data: str) -> None:
    """Raises ValueError where `data` names no set and is no folder."""
    if not motion_set(data) and not os.path.isdir(data):  # noqa: PTH112, Path.is_dir raises where a name is too long
        raise ValueError(f"data {brief(data)} is neither a folder nor a generated set{nearest(data, MOTION_SETS)}")


def load_split(folder: Path, split: str) -> Split:
    """Questions whose answer is secret are left out: they can be neither learned nor scored."""
    questions = [question for question in read_motionbench(folder / split) if question.answer]
    if not questions:
        raise ValueError(f"{folder / split} keeps all its answers secret: nothing can be learned or scored")
    if not (folder / split / "truth.safetensors").is_file():
        return Split(questions)
    truth = load_truth(folder / split)
    check_pair(folder / split, questions, truth)
    frames = truth.masks.shape[1]
    shuffled = read_shuffled(folder / "settings.json", frames)
    return Split(questions, shuffled, frames, truth, weighed(motion_targets(truth)))


def check_pair(folder: Path, questions: list[Question], truth: Truth) -> None:
    """Row i of the truth is about question i. Raises ValueError where their answers or categories differ."""
    asked = [(question.category, question.answer) for question in questions]
    known = [(CATEGORIES[c], LETTERS[a]) for c, a in zip(truth.category.tolist(), truth.answer.tolist(), strict=True)]
    if len(asked) != len(known):
        raise ValueError(f"{folder}: truth.safetensors knows {len(known)} clips, {ANNOTATIONS} asks about {len(asked)}")
    for question, pair in zip(questions, known, strict=True):
        if pair != (question.category, question.answer):
            said = f"{question.category} {question.answer} in {ANNOTATIONS}, {' '.join(pair)} in truth.safetensors"
            raise ValueError(f"{folder}: question {brief(question.uid)} is {said}")


def read_shuffled(file: Path, frames: int) -> bool:
    """Raises ValueError where the set's settings are not those of clips of `frames` frames."""
    settings = read_object(file)
    shuffled = settings.get("shuffled")
    if not isinstance(shuffled, bool):
        raise ValueError(f"{file}: shuffled must be true or false, got {brief(shuffled)}")
    if settings.get("frames") != frames:
        raise ValueError(f"{file}: frames is {brief(settings.get('frames'))}, truth.safetensors has {frames} a clip")
    return shuffled
