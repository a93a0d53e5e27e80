"""What the generator knows about its clips: exact trajectories and masks, and the training targets made of them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import one_hot

from tefusion.choices import brief, listed
from tefusion.data.motion_files import CATEGORIES
from tefusion.data.motion_render import FLASH
from tefusion.data.motion_scene import COLOURS, COUNTS, DIRECTIONS, OPPOSITE, SHAPES, SPINS, object_name
from tefusion.data.question import LETTERS

CHANNELS = {"velocity": 2, "spin": 1, "pan": 2, "flash": 1, "sine": 2, "cosine": 2, "hopper": len(COLOURS)}
WEIGHTS = {"pan": 6.0, "flash": 3.0}  # of kinds that are hard to see among the auxiliary losses; the others count 1
LIMIT = 2.0  # targets are clipped to it: the fastest clips move four units a frame


@dataclass(frozen=True)
class Truth:
    """Row i is clip i. Positions (x, y) and background offsets in px, angles in degrees counter-clockwise; mask pixels
    are 1 + the object's place, or 0; colour and shape 0 mark an empty place. `truth[indices]` keeps those clips."""

    positions: Float[Tensor, "clips t 4 2"]
    visible: Bool[Tensor, "clips t 4"]
    angles: Float[Tensor, "clips t 4"]
    flash: Bool[Tensor, "clips t 4"]
    colours: Int[Tensor, "clips 4"]
    shapes: Int[Tensor, "clips 4"]
    background: Float[Tensor, "clips t 2"]
    masks: UInt8[Tensor, "clips t size size"]
    category: Int[Tensor, " clips"]
    answer: Int[Tensor, " clips"]
    stride: Int[Tensor, " clips"]

    @property
    def size(self) -> int:
        return self.masks.shape[-1]

    def __len__(self) -> int:
        return len(self.category)

    def __getitem__(self, clips: slice | list[int] | Tensor) -> "Truth":
        return Truth(**{field.name: getattr(self, field.name)[clips] for field in fields(self)})


class TruthError(ValueError):
    """A truth.safetensors that is none; the message names the file."""


SHAPE = {"positions": "nt42", "visible": "nt4", "angles": "nt4", "flash": "nt4", "colours": "n4", "shapes": "n4"}
SHAPE |= {"background": "nt2", "masks": "ntss", "category": "n", "answer": "n", "stride": "n"}
KINDS = {torch.bool: ("visible", "flash"), torch.float32: ("positions", "angles", "background")}
KINDS |= {torch.int64: ("colours", "shapes", "category", "answer", "stride"), torch.uint8: ("masks",)}
DTYPE = {name: dtype for dtype, names in KINDS.items() for name in names}
BELOW = {"colours": 1 + len(COLOURS), "shapes": 1 + len(SHAPES), "category": len(CATEGORIES), "answer": len(LETTERS)}


def load_truth(folder: str | Path) -> Truth:
    """The truth of one split; its masks are mapped from the file and cost no memory until they are read. Raises
    TruthError where a tensor is missing, unexpected, or not what `Truth` says."""
    from tefusion.tensor_files import load_tensors

    path = Path(folder) / "truth.safetensors"
    if not path.is_file():
        raise TruthError(f"{folder} holds no truth.safetensors; it is written by write_motion")
    try:
        tensors = load_tensors(path)
    except ValueError as error:
        raise TruthError(str(error)) from None
    if problems := [*wrong_names(tensors)] or [*wrong_shapes(tensors)] or [*wrong_values(tensors)]:
        raise TruthError(f"{path} is no truth of a motion set: {listed(problems)}")
    return Truth(**tensors)


def wrong_names(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    yield from (f"{name} is missing" for name in SHAPE if name not in tensors)
    yield from (f"{brief(name)} is unexpected" for name in tensors if name not in SHAPE)


def wrong_shapes(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Sizes go by the masks, which have them all."""
    shape = tuple(tensors["masks"].shape)
    if len(shape) != 4 or shape[2] != shape[3] or min(shape) < 1 or shape[1] < 2:
        yield f"masks are {shape} instead of (clips, frames, size, size)"
        return
    known = {"n": shape[0], "t": shape[1], "s": shape[2]}
    for name, letters in SHAPE.items():
        wanted, found = tuple(known.get(s) or int(s) for s in letters), tuple(tensors[name].shape)
        if (found, tensors[name].dtype) != (wanted, DTYPE[name]):
            yield f"{name} is {found} {tensors[name].dtype} instead of {wanted} {DTYPE[name]}"


def wrong_values(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for name in KINDS[torch.float32]:
        if not tensors[name].isfinite().all():
            yield f"{name} is not finite"
    for name, end in BELOW.items():
        low, high = map(int, tensors[name].aminmax())
        if not 0 <= low <= high < end:
            yield f"{name} goes from {low} to {high} and not from 0 to {end - 1}"


def wrapped(change: Tensor, period: int) -> Tensor:
    """The shortest way round: -period/2 <= result < period/2."""
    return (change + period / 2) % period - period / 2


def steps(truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
    """Change to the next frame of positions (clips, t, 4, 2), angles (clips, t, 4) and background (clips, t, 2); the
    last frame repeats the step before it."""
    position = wrapped(truth.positions.diff(dim=1), truth.size)
    angle = wrapped(truth.angles.diff(dim=1), 360)
    background = truth.background.diff(dim=1)
    return tuple(torch.cat([step, step[:, -1:]], dim=1) for step in (position, angle, background))  # type: ignore[return-value]


def hops(truth: Truth) -> Bool[Tensor, "clips 4"]:
    """Which object of a Motion-related Objects clip leaves its place."""
    moved = steps(truth)[0].abs().amax(dim=(1, 3)) > 0
    return moved & (truth.category == CATEGORIES.index("MO"))[:, None]


def motion_targets(truth: Truth) -> Float[Tensor, "clips t channels"]:
    """Auxiliary targets in the order of CHANNELS, zero where they do not apply, clipped to +-LIMIT.

    velocity of the one object and pan of the background in size/16 a frame (x, y); spin in 45 degrees a frame; flash
    0/1; sine and cosine of the one object's place, 2 pi x / size and 2 pi y / size; hopper one-hot by colour.
    """
    position, angle, background = steps(truth)
    alone = (truth.colours > 0).sum(dim=1) == 1
    alone = rearrange(alone, "clips -> clips 1 1").float()
    unit = truth.size / 16
    phase = truth.positions[:, :, 0] * (2 * math.pi / truth.size)
    colour = (truth.colours * hops(truth)).sum(dim=1)
    hopper = one_hot(colour, len(COLOURS) + 1)[:, None, 1:].expand(-1, truth.angles.shape[1], -1)
    parts = {
        "velocity": alone * position[:, :, 0] / unit,
        "spin": alone * angle[:, :, :1] / 45,
        "pan": background / unit,
        "flash": truth.flash.any(dim=-1, keepdim=True),
        "sine": alone * phase.sin(),
        "cosine": alone * phase.cos(),
        "hopper": hopper,
    }
    return torch.cat([parts[name].float() for name in CHANNELS], dim=-1).clamp(-LIMIT, LIMIT)


def weighed(targets: Float[Tensor, "clips t channels"]) -> Float[Tensor, "clips t channels"]:
    """Each kind of target at the mean square that WEIGHTS gives it, whatever its units, its rarity, or the number of
    its channels.

    The components of a vector share their scale, so that a turned clip has turned targets.
    """
    kinds = zip(targets.split(list(CHANNELS.values()), dim=-1), CHANNELS, strict=True)
    powers = [(kind, kind.square().sum(-1).mean().clamp(min=1e-12), WEIGHTS.get(name, 1.0)) for kind, name in kinds]
    return torch.cat([kind * (weight / power).sqrt() for kind, power, weight in powers], dim=-1)


@dataclass(frozen=True)
class PatchTargets:
    """What each patch of each frame shows: `classes` 0 background, 1..6 colour, 7 flash; `offsets` (x, y) from the
    patch's centre to the nearest object's centre in patches; `headings` (x, y) where that object points, zero for one
    that points nowhere; `near` where the centre is at most one patch away on both axes."""

    classes: Int[Tensor, "clips t rows columns"]
    offsets: Float[Tensor, "clips t rows columns 2"]
    headings: Float[Tensor, "clips t rows columns 2"]
    near: Bool[Tensor, "clips t rows columns"]


def patch_targets(truth: Truth, patch: int) -> PatchTargets:
    """An object counts in a patch from a sixteenth of its pixels on; of several, the one with the most wins."""
    if patch < 1 or truth.size % patch:
        raise ValueError(f"patch={patch} does not divide the frame size {truth.size}")
    split = "clips t (rows p1) (columns p2) -> clips t rows columns"
    shown = [truth.masks == place for place in range(1, 5)]
    counts = torch.stack([reduce(s.float(), split, "sum", p1=patch, p2=patch) for s in shown], dim=-1)
    most, place = counts.max(dim=-1)
    colours = torch.where(truth.flash, FLASH, rearrange(truth.colours, "clips n -> clips 1 n"))
    colour = torch.gather(rearrange(colours, "clips t n -> clips t 1 1 n").expand_as(counts), -1, place[..., None])
    classes = torch.where(most >= max(1, patch * patch / 16), colour[..., 0], 0)
    centres = (torch.arange(truth.size // patch) + 0.5) * patch
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)  # rows columns (x, y)
    offsets = rearrange(truth.positions, "clips t n xy -> clips t 1 1 n xy") - rearrange(grid, "r c xy -> r c 1 xy")
    offsets = wrapped(offsets, truth.size) / patch
    reach = offsets.abs().amax(dim=-1).masked_fill(~rearrange(truth.visible, "clips t n -> clips t 1 1 n"), math.inf)
    nearest, place = reach.min(dim=-1)
    index = place[..., None, None].expand(*place.shape, 1, 2)
    near = nearest <= 1
    offsets = torch.gather(offsets, -2, index)[..., 0, :] * near[..., None]
    headings = rearrange(pointing(truth), "clips t n xy -> clips t 1 1 n xy").expand(*reach.shape, 2)
    return PatchTargets(classes, offsets, torch.gather(headings, -2, index)[..., 0, :] * near[..., None], near)


def pointing(truth: Truth) -> Float[Tensor, "clips t 4 2"]:
    """Where each arrow and triangle points, as a unit vector (x, y); zero for shapes that point nowhere."""
    radians = truth.angles * (math.pi / 180)
    points = torch.isin(truth.shapes, torch.tensor([SHAPES.index("triangle") + 1, SHAPES.index("arrow") + 1]))
    return torch.stack([radians.cos(), -radians.sin()], dim=-1) * rearrange(points, "clips n -> clips 1 n 1")


def heading(step: Tensor) -> str:
    """The direction word of a displacement (x, y): its larger axis."""
    axis = int(step.abs().argmax())
    return {vector: word for word, vector in DIRECTIONS.items()}[
        (int(step[0].sign()), 0) if axis == 0 else (0, int(step[1].sign()))
    ]


def right_option(truth: Truth, clip: int) -> str:
    """The text of the right option from the truth alone, whatever drew the scene."""
    one = truth[[clip]]
    position, angle, background = (step[0, :-1] for step in steps(one))
    match CATEGORIES[int(one.category)]:
        case "MR" if angle[:, 0].any():
            return {sign: word for word, sign in SPINS.items()}[int(angle[0, 0].sign())]
        case "MR":
            return heading(position[0, 0])
        case "LM":
            return f"further {heading(position[:, 0].sum(dim=0))}"
        case "CM":
            return OPPOSITE[heading(background[0])]
        case "MO":
            place = int(hops(one)[0].int().argmax())
            return f"the {object_name(int(one.colours[0, place]), int(one.shapes[0, place]))}"
        case "AO":
            return f"{heading(position[0, 0])}, then {heading(position[-1, 0])}"
        case _:
            return COUNTS[int(one.flash[0, :, 0].sum()) - 1]
