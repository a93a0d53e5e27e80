"""What is asked of a video: how many of its frames, chosen by a named policy, from when to when, at which size."""

from __future__ import annotations

import math
import re
from dataclasses import KW_ONLY, dataclass

from tefusion.containers import VideoError

BACKENDS = ("auto", "pyav", "decord")
MOST_FRAMES = 1 << 16  # of one request, so that a slip of the keyboard does not become a list of billions
Size = int | tuple[int, int] | None


@dataclass(frozen=True)
class Request:
    """frames: at most, and repeated where a clip has fewer. size: pixels of the side of a square or (height, width);
    None keeps the file's own. multiple_of: what the number of frames returned is a multiple of. start, end: seconds
    from the first frame; the clip is what is on screen in [start, end). Raises VideoError."""

    frames: int
    policy: str = "linspace"
    size: Size = None
    _: KW_ONLY
    backend: str = "auto"
    multiple_of: int = 1
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        rate_of(self.policy)
        _check_counts(frames=self.frames, multiple_of=self.multiple_of)
        _check_span(self.start, self.end)
        as_size(self.size)
        if self.backend not in BACKENDS:
            raise VideoError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")

    @property
    def height_width(self) -> tuple[int, int] | None:
        return as_size(self.size)


def sample(policy: str, total: int, frames: int, fps: float, multiple_of: int = 1) -> list[int]:
    """Frame indices in [0, total), never decreasing; a count that multiple_of does not divide is rounded down, to
    multiple_of at least. fps: of the video; only the policy fps:<rate> reads it and takes the centres of its segments.
    """
    rate = rate_of(policy)
    _check_counts(frames=frames, multiple_of=multiple_of)
    if total < 1:
        raise VideoError(f"there must be at least 1 frame to choose from, not {total!r}")
    if rate is not None:
        # Some containers round timestamps to the millisecond: ten seconds must not become 9.999 and lose a frame.
        frames = int(min(frames, total / fps * rate + 0.01))
    frames = max(frames - frames % multiple_of, multiple_of)
    if policy != "linspace":
        return [(2 * i + 1) * total // (2 * frames) for i in range(frames)]
    gaps = max(frames - 1, 1)
    return [(2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(frames)]


def rate_of(policy: str) -> float | None:
    """Frames a second that a policy asks for; None where it counts frames alone."""
    if policy in ("linspace", "centres"):
        return None
    match = re.fullmatch(r"fps:(\d{1,6}(?:\.\d{1,6})?)", policy, re.ASCII)
    if not match or float(match[1]) == 0:
        raise VideoError(f"policy must be linspace, centres or fps:<rate> such as fps:2, not {policy!r}")
    return float(match[1])


def parse_size(text: str) -> tuple[int, int]:
    """ "32" is (32, 32), "32x16" is height 32, width 16."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text, re.ASCII)
    if not match:
        raise VideoError(f'size must be pixels such as "32" or height x width such as "32x16", not {text!r}')
    return int(match[1]), int(match[2] or match[1])


def as_size(size: Size) -> tuple[int, int] | None:
    """(height, width) in pixels; None where frames keep their own."""
    if size is None:
        return None
    pair = size if isinstance(size, tuple) else (size, size)
    if len(pair) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in pair):
        raise VideoError(f"size must be a positive number of pixels or (height, width), not {size!r}")
    return pair


def _check_span(start: float | None, end: float | None) -> None:
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise VideoError(f"{name} must be seconds of at least 0, not {value!r}")
    if end is not None and end <= (start or 0):
        raise VideoError(f"end must come after start: {end!r} does not come after {start or 0!r} seconds")


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_FRAMES:
            raise VideoError(f"{name} must be a whole number from 1 to {MOST_FRAMES}, not {value!r}")
