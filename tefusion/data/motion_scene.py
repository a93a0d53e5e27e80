"""Scenes of the generated motion set: who moves how, what is asked, and which option is right.

The world is a torus of `size` pixels with uniform phases, so that a single frame never tells the answer. Distances are
shares of the size; x grows to the right, y downwards; angles are degrees counter-clockwise as seen, 0 points right.
A category is one function of a `Shot` and one line in SCENARIOS.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

OBJECTS = 4  # most objects in a scene; the truth is padded to it
STRIDES = (2, 4, 8, 16)
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")  # id 1..6; 0 is nothing
SHAPES = ("square", "disc", "triangle", "arrow")  # id 1..4; 0 is nothing
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
SPINS = {"clockwise": -1, "counter-clockwise": 1}
COUNTS = ("once", "twice", "three times", "four times")
NUMBERS = {"none": 0, "one": 1, "two": 2, "four": 4}
RANK = {word: i for i, word in enumerate((*DIRECTIONS, *SPINS, *COUNTS, *NUMBERS, *COLOURS, *SHAPES))}
STEMS = {  # free of the words for directions, which turn with the picture
    "MR": "How does the {object} move?",
    "LM": "Where does the {object} finish?",
    "CM": "How does the camera move?",
    "MO": "Which object hops?",
    "AO": "In which order does the {object} move?",
    "RC": "How often does the {object} flash?",
}


@dataclass(frozen=True)
class Shot:
    """What a scenario is given: a generator of its own, the format, and the stride at which its motion must alias."""

    rng: np.random.Generator
    size: int
    frames: int
    stride: int

    def choice(self, items):
        return items[int(self.rng.integers(len(items)))]

    def place(self) -> Array:
        """A uniform point on a grid of 1/16 px, so that sums modulo the size are exact in float32."""
        return self.rng.integers(self.size * 16, size=2) / 16

    def still(self) -> Array:
        return np.zeros((self.frames, 2))

    def glide(self, direction: str, speed: float) -> Array:
        """(t, 2) displacement at `speed` px a frame."""
        return np.arange(self.frames)[:, None] * speed * np.array(DIRECTIONS[direction])


@dataclass(frozen=True)
class Scene:
    """n objects over t frames (px, degrees), the background's offset (px), and the question with its four options."""

    positions: Array  # t n 2
    angles: Array  # t n
    colours: Array  # n
    shapes: Array  # n
    flash: Array  # t n
    background: Array  # t 2
    stem: str
    right: str
    wrong: tuple[str, ...]


def in_order(options: Iterable[str]) -> tuple[str, ...]:
    """The one order in which a set that does not shuffle lists its options, whatever is right: by their words' rank."""
    return tuple(sorted(options, key=lambda text: [RANK[w] for w in [text, *re.split("[ ,]+", text)] if w in RANK]))


def object_name(colour: int, shape: int) -> str:
    return f"{COLOURS[colour - 1]} {SHAPES[shape - 1]}"


def single(shot: Shot, category: str, path: Array, right: str, wrong: tuple[str, ...], shape: int = 0) -> Scene:
    """One object of a random colour (and shape, unless given) that follows `path` (t, 2) from a random place."""
    colour = int(shot.rng.integers(len(COLOURS))) + 1
    shape = shape or int(shot.rng.integers(len(SHAPES))) + 1
    return Scene(
        positions=(shot.place() + path)[:, None],
        angles=np.full((shot.frames, 1), 90.0 * shot.rng.integers(4)),
        colours=np.array([colour]),
        shapes=np.array([shape]),
        flash=np.zeros((shot.frames, 1), bool),
        background=shot.still(),
        stem=STEMS[category].format(object=object_name(colour, shape)),
        right=right,
        wrong=wrong,
    )


def motion_recognition(shot: Shot) -> Scene:
    """An arrow glides or turns so fast that every stride-th frame cannot tell the sense.

    Every sprite is an arrow with a random start angle, so neither shape nor a frame tells turning from gliding.
    """
    pairs = [("left", "right"), ("up", "down"), ("clockwise", "counter-clockwise")]
    shot.rng.shuffle(pairs)
    (right, opposite), other = shot.rng.permutation(pairs[0]).tolist(), pairs[1]
    moves = right in DIRECTIONS
    path = shot.glide(right, shot.size / (2 * shot.stride)) if moves else shot.still()
    turn = 0.0 if moves else SPINS[right] * 180 / shot.stride
    scene = single(shot, "MR", path, right, (opposite, *other), shape=SHAPES.index("arrow") + 1)
    angles = shot.rng.integers(360 * 4) / 4 + turn * np.arange(shot.frames)
    return replace(scene, angles=angles[:, None])


def location(shot: Shot) -> Scene:
    """A slow drift under hops that are larger than the drift of a frame; the first and the last hop are equal, so the
    displacement from first to last frame is the drift alone."""
    right = shot.choice(tuple(DIRECTIONS))
    drift = shot.rng.uniform(shot.size / 4, shot.size / 3) / (shot.frames - 1)
    reach = shot.size // 16
    hops = shot.rng.integers(-reach, reach + 1, size=(shot.frames, 2))
    hops[-1] = hops[0]
    path = np.round(shot.glide(right, drift) * 16) / 16 + hops
    wrong = tuple(f"further {word}" for word in DIRECTIONS if word != right)
    return single(shot, "LM", path, f"further {right}", wrong)


def camera(shot: Shot) -> Scene:
    """Background alone; the picture moves against the camera."""
    right = shot.choice(tuple(DIRECTIONS))
    return Scene(
        positions=np.zeros((shot.frames, 0, 2)),
        angles=np.zeros((shot.frames, 0)),
        colours=np.zeros(0, int),
        shapes=np.zeros(0, int),
        flash=np.zeros((shot.frames, 0), bool),
        background=shot.glide(OPPOSITE[right], shot.size / (2 * shot.stride)),
        stem=STEMS["CM"],
        right=right,
        wrong=tuple(word for word in DIRECTIONS if word != right),
    )


def hopping(shot: Shot) -> Scene:
    """Four objects near the places of a shifted lattice; one draws its offset afresh every frame.

    All offsets come from one distribution: no single frame tells who hops.
    """
    lattice = shot.place() + np.array([(0, 0), (0, 1), (1, 0), (1, 1)]) * shot.size / 2
    hopper = int(shot.rng.integers(OBJECTS))
    offsets = np.repeat(shot.rng.integers(-1, 2, size=(1, OBJECTS, 2)), shot.frames, axis=0)
    offsets[:, hopper] = shot.rng.integers(-1, 2, size=(shot.frames, 2))
    colours = shot.rng.permutation(len(COLOURS))[:OBJECTS] + 1
    shapes = shot.rng.integers(len(SHAPES), size=OBJECTS) + 1
    names = [f"the {object_name(colour, shape)}" for colour, shape in zip(colours, shapes, strict=True)]
    return Scene(
        positions=lattice + offsets * shot.size * 3 / 32,
        angles=np.repeat(90.0 * shot.rng.integers(4, size=(1, OBJECTS)), shot.frames, axis=0),
        colours=colours,
        shapes=shapes,
        flash=np.zeros((shot.frames, OBJECTS), bool),
        background=shot.still(),
        stem=STEMS["MO"],
        right=names.pop(hopper),
        wrong=tuple(names),
    )


def order_options(first: str, second: str) -> tuple[str, ...]:
    """The right order, then the wrong ones; from any of the four the same four follow."""
    pairs = [(first, second), (second, first)]
    pairs += [(OPPOSITE[a], OPPOSITE[b]) for a, b in pairs]
    return tuple(f"{a}, then {b}" for a, b in pairs)


def action_order(shot: Shot) -> Scene:
    """One direction, then one along the other axis, switching about half-way."""
    first = shot.choice(tuple(DIRECTIONS))
    second = shot.choice(("up", "down") if first in ("left", "right") else ("left", "right"))
    switch = int(shot.rng.integers(round(shot.frames * 7 / 16), round(shot.frames * 9 / 16) + 1))
    steps = np.where(np.arange(1, shot.frames)[:, None] < switch, DIRECTIONS[first], DIRECTIONS[second])
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]) * shot.size / 16
    right, *wrong = order_options(first, second)
    return single(shot, "AO", path, right, tuple(wrong))


def repetition(shot: Shot) -> Scene:
    """One to four flashes of one frame, with at least one frame between two of them."""
    count = int(shot.rng.integers(1, 5))
    # Flashes at least two frames apart: draw from the frames that are left when count - 1 gaps are taken out.
    slots = np.sort(shot.rng.choice(shot.frames - count + 1, size=count, replace=False)) + np.arange(count)
    wrong = tuple(word for word in COUNTS if word != COUNTS[count - 1])
    scene = single(shot, "RC", shot.still(), COUNTS[count - 1], wrong)
    scene.flash[slots, 0] = True
    return scene


SCENARIOS: dict[str, Callable[[Shot], Scene]] = {
    "MR": motion_recognition,
    "LM": location,
    "CM": camera,
    "MO": hopping,
    "AO": action_order,
    "RC": repetition,
}


def create_scene(category: str, shot: Shot, pan: float) -> Scene:
    """The category's scene; outside CM the background pans slowly in a share `pan` of the scenes."""
    scene = SCENARIOS[category](shot)
    if category != "CM" and shot.rng.random() < pan:
        scene = replace(scene, background=shot.glide(shot.choice(tuple(DIRECTIONS)), shot.size / 32))
    return replace(scene, positions=scene.positions % shot.size, angles=scene.angles % 360)
