"""The generated sets by name: `motion`, `motion-smoke`, and either with clips of other lengths, as in `motion-24`."""

import re
from dataclasses import replace

from tefusion.choices import brief
from tefusion.data.motion_files import MotionSettings

# Generated where they are first asked for.
MOTION_SETS = {
    "motion": MotionSettings(),
    "motion-smoke": MotionSettings(train=768, dev=96, test=96),
}
LENGTHS = range(8, 65)  # frames a clip


def motion_set(data: str) -> MotionSettings | None:
    """None where `data` names no generated set. Raises ValueError on a length that none has."""
    if data in MOTION_SETS:
        return MOTION_SETS[data]
    match = re.fullmatch(r"(.+)-(\d{1,9})", data, re.ASCII)
    if not match or match[1] not in MOTION_SETS:
        return None
    if int(match[2]) not in LENGTHS:
        said = f"generated clips have {LENGTHS[0]} to {LENGTHS[-1]} frames"
        raise ValueError(f"data {brief(data)}: {said}, so n_input can be no more")
    return replace(MOTION_SETS[match[1]], frames=int(match[2]))


def long_enough(data: str, n_input: int) -> str:
    """The set with clips of `n_input` frames, where `data` names a generated one and its clips are shorter; a name
    that says its length keeps it."""
    return f"{data}-{n_input}" if data in MOTION_SETS and n_input > MOTION_SETS[data].frames else data
