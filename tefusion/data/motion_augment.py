"""The square's eight mirrors and quarter turns, and a fresh order of the options: other pixels, and a true answer.

One `Symmetry` turns frames, words, targets and truth alike.
"""

import math
import re
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tefusion.data.motion_scene import DIRECTIONS, SPINS, Array, in_order
from tefusion.data.motion_truth import CHANNELS, PatchTargets, Truth
from tefusion.data.question import LETTERS, Question

WORDS = re.compile(r"\b(counter-clockwise|clockwise|left|right|up|down)\b")
VECTORS = ("velocity", "pan", "sine")  # turn like (x, y); a cosine keeps its sign, a spin changes it in a mirror


@dataclass(frozen=True)
class Symmetry:
    """Swaps x and y first if `transpose`, then mirrors x and y."""

    transpose: bool
    mirror_x: bool
    mirror_y: bool

    def matrix(self) -> Float[Tensor, "2 2"]:
        """(x, y) columns: turned = matrix @ vector."""
        signs = torch.tensor([-1.0 if self.mirror_x else 1.0, -1.0 if self.mirror_y else 1.0])
        return torch.diag(signs) @ (torch.eye(2).flip(0) if self.transpose else torch.eye(2))


SYMMETRIES = tuple(Symmetry(*flags) for flags in product((False, True), repeat=3))


def word_map(symmetry: Symmetry) -> dict[str, str]:
    matrix = symmetry.matrix()
    names = {vector: word for word, vector in DIRECTIONS.items()}
    words = {
        word: names[tuple((matrix @ torch.tensor(v, dtype=torch.float)).int().tolist())]
        for word, v in DIRECTIONS.items()
    }
    signs = {sign: word for word, sign in SPINS.items()}
    return words | {word: signs[sign * round(matrix.det().item())] for word, sign in SPINS.items()}


def target_matrix(symmetry: Symmetry) -> Float[Tensor, "channels channels"]:
    vector = symmetry.matrix()
    blocks = {name: torch.eye(width) for name, width in CHANNELS.items()}
    blocks |= dict.fromkeys(VECTORS, vector) | {"cosine": vector.abs(), "spin": vector.det().reshape(1, 1)}
    return torch.block_diag(*(blocks[name] for name in CHANNELS)).T.contiguous()


WORD_MAPS = {symmetry: word_map(symmetry) for symmetry in SYMMETRIES}
TARGET_MATRICES = {symmetry: target_matrix(symmetry) for symmetry in SYMMETRIES}


def augment(
    frames: Array,
    question: Question,
    targets: Float[Tensor, "t channels"],
    rng: np.random.Generator,
    shuffled: bool = False,
) -> tuple[Array, Question, Float[Tensor, "t channels"]]:
    """A random symmetry of one clip (frames t h w 3, h = w; its `motion_targets`); the options are
    shuffled again, or brought back into their fixed order."""
    symmetry = SYMMETRIES[int(rng.integers(len(SYMMETRIES)))]
    question = arrange_options(turn_question(question, symmetry), rng, shuffled)
    return turn_frames(frames, symmetry), question, turn_targets(targets, symmetry)


def turn_frames(frames: Array, symmetry: Symmetry) -> Array:
    """(..., h, w, c), h = w. Pixels are moved whole, which is four times as fast as their channels one by one."""
    if frames.shape[-3] != frames.shape[-2]:
        raise ValueError(f"frames of {frames.shape[-3]} x {frames.shape[-2]} are not square: they cannot be turned")
    whole = np.dtype((np.void, frames.shape[-1] * frames.itemsize))
    pixels = np.ascontiguousarray(frames).view(whole)[..., 0]
    if symmetry.transpose:
        pixels = pixels.swapaxes(-2, -1)
    x, y = (slice(None, None, -1) if mirror else slice(None) for mirror in (symmetry.mirror_x, symmetry.mirror_y))
    return np.ascontiguousarray(pixels[..., y, x])[..., None].view(frames.dtype)


def turn_question(question: Question, symmetry: Symmetry) -> Question:
    words = WORD_MAPS[symmetry]
    text, *options = (WORDS.sub(lambda match: words[match[0]], part) for part in (question.text, *question.options))
    return replace(question, text=text, options=tuple(options))


def arrange_options(question: Question, rng: np.random.Generator, shuffled: bool) -> Question:
    """In a random order or in the fixed one; the answer's letter follows its option."""
    order = rng.permutation(len(question.options)).tolist()
    if not shuffled:
        order = [question.options.index(option) for option in in_order(question.options)]
    answer = question.answer and LETTERS[order.index(LETTERS.index(question.answer))]
    return replace(question, options=tuple(question.options[i] for i in order), answer=answer)


def turn_targets(targets: Float[Tensor, "*batch channels"], symmetry: Symmetry) -> Float[Tensor, "*batch channels"]:
    """`motion_targets` of the turned clips."""
    return targets @ TARGET_MATRICES[symmetry]


def turn_grid(values: Tensor, symmetry: Symmetry, rows: int) -> Tensor:
    """Turns the two axes that begin at `rows`."""
    if symmetry.transpose:
        values = values.transpose(rows, rows + 1)
    return values.flip([rows + 1] * symmetry.mirror_x + [rows] * symmetry.mirror_y)


def turn_patches(patches: PatchTargets, symmetry: Symmetry) -> PatchTargets:
    """`patch_targets` of the turned frames."""
    offsets, headings = (turn_grid(x, symmetry, -3) @ symmetry.matrix().T for x in (patches.offsets, patches.headings))
    classes, near = (turn_grid(x, symmetry, -2) for x in (patches.classes, patches.near))
    return PatchTargets(classes, offsets, headings, near)


def turn_truth(truth: Truth, symmetry: Symmetry) -> Truth:
    """The truth of the turned clips."""
    matrix = symmetry.matrix()
    middle = truth.size / 2
    start = math.degrees(math.atan2(-matrix[1, 0], matrix[0, 0]))  # where an arrow that pointed right points now
    return replace(
        truth,
        positions=((truth.positions - middle) @ matrix.T + middle) % truth.size,
        angles=(truth.angles * matrix.det() + start) % 360,
        background=truth.background @ matrix.T,
        masks=turn_grid(truth.masks, symmetry, -2),
    )
