"""Questions about single frames, for the image stage: colour, shape, heading, place and number, from the truth.

One question a clip; frames that cannot answer any (and half of the empty ones, to balance the counts) give none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tefusion.data.motion_augment import arrange_options
from tefusion.data.motion_files import CATEGORIES
from tefusion.data.motion_scene import COLOURS, DIRECTIONS, NUMBERS, SHAPES, Array, object_name
from tefusion.data.motion_truth import Truth
from tefusion.data.question import Question

STILL_STEMS = {
    "colour": "What colour is the object?",
    "shape": "What shape is the {colour} object?",
    "points": "Which way does the arrow point?",
    "place": "Which way from the middle is the {object}?",
    "number": "How many objects are there?",
}
SHARE = {"MO": 0.5, "CM": 0.5}  # of the clips that count objects; 1/8 of the others: none, one and four equally often
OFTEN = {"points": 4, "place": 4}  # few frames can be asked these


@dataclass(frozen=True)
class Still:
    """A question about one frame of one clip."""

    clip: int
    frame: int
    question: Question


@dataclass(frozen=True)
class View:
    """One frame of the truth: its n objects, without the empty places."""

    category: str
    size: int
    positions: Array  # n 2
    angles: Array  # n
    colours: Array  # n
    shapes: Array  # n


def still_questions(truth: Truth, questions: Sequence[Question], seed: int, shuffled: bool = False) -> list[Still]:
    """`questions` are those of the same clips in the same order; another seed draws other frames and questions.

    The question's category is its key in STILL_STEMS; its video is the clip's.
    """
    if len(questions) != len(truth):
        raise ValueError(f"{len(questions)} questions do not belong to {len(truth)} clips")
    rng = np.random.default_rng([seed, len(truth)])
    arrays = [x.numpy() for x in (truth.positions, truth.angles, truth.colours, truth.shapes, truth.flash)]
    stills = []
    for clip, (category, question) in enumerate(zip(truth.category.tolist(), questions, strict=True)):
        frame = int(rng.integers(truth.angles.shape[1]))
        positions, angles, colours, shapes, flash = (array[clip] for array in arrays)
        if flash[frame].any():
            continue
        n = int((colours > 0).sum())
        view = View(CATEGORIES[category], truth.size, positions[frame, :n], angles[frame, :n], colours[:n], shapes[:n])
        asked = ask(view, rng)
        if asked:
            kind, stem, options = asked
            uid = f"{question.uid}-{frame}-{kind}"
            still = replace(question, uid=uid, text=stem, options=tuple(options), answer="A", category=kind)
            stills.append(Still(clip, frame, arrange_options(still, rng, shuffled)))
    return stills


def ask(view: View, rng: np.random.Generator) -> tuple[str, str, list[str]] | None:
    """Kind, stem and options, the right one first; None where the frame answers no question."""
    n = len(view.colours)
    if rng.random() < SHARE.get(view.category, 0.125):
        return "number", STILL_STEMS["number"], first({number: word for word, number in NUMBERS.items()}[n], NUMBERS)
    if n == 0:
        return None
    i = int(rng.integers(n))
    asked = answers(view, i)
    urns = [kind for kind in asked for _ in range(OFTEN.get(kind, 1))]
    kind = urns[int(rng.integers(len(urns)))]
    colour, shape = int(view.colours[i]), int(view.shapes[i])
    stem = STILL_STEMS[kind].format(colour=COLOURS[colour - 1], object=object_name(colour, shape))
    options = first(asked[kind], {"colour": COLOURS, "shape": SHAPES}.get(kind, tuple(DIRECTIONS)))
    return kind, stem, [options[0], *rng.permutation(options[1:])[:3].tolist()]


def answers(view: View, i: int) -> dict[str, str]:
    """Kind of question about object i -> right option, for the kinds that this frame answers."""
    alone, arrows = len(view.colours) == 1, view.category == "MR"  # where all are arrows, shape is no question
    found = {
        "colour": COLOURS[view.colours[i] - 1] if alone else None,
        "shape": None if arrows else SHAPES[view.shapes[i] - 1],
        "points": pointing(float(view.angles[i])) if arrows else None,
        "place": placed(view.positions[i], view.size),
    }
    return {kind: word for kind, word in found.items() if word}


def first(right: str, words: Iterable[str]) -> list[str]:
    return [right, *(word for word in words if word != right)]


def pointing(angle: float) -> str | None:
    """The axis within 30 degrees, if any."""
    quarter = round(angle / 90)
    return ("right", "up", "left", "down")[quarter % 4] if abs(angle - 90 * quarter) <= 30 else None


def placed(position: Array, size: int) -> str | None:
    """The direction from the middle where it is clear: off the middle and the edges, and mostly along one axis."""
    offset = position / size - 0.5
    axis = int(np.abs(offset).argmax())
    if not 0.125 <= abs(offset[axis]) <= 0.375 or abs(offset[1 - axis]) > 0.6 * abs(offset[axis]):
        return None
    return (("left", "right"), ("up", "down"))[axis][int(offset[axis] > 0)]
