"""A video file becomes the sampled frames, each of them the frame it claims to be.

PyAV read in order is the definition. decord reads sparsely and is used only where that is both exact and worth it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch.nn import functional

from tefusion.containers import Clip, VideoError, clip_of, opened, probe

__all__ = ["BACKENDS", "Decoded", "VideoError", "as_size", "decode", "parse_size", "read_video", "sample", "versions"]

BACKENDS = ("auto", "pyav", "decord")
THREADED_PIXELS = 50_000_000  # in a smaller clip, starting the decoder's threads costs more than they save
SEEK_PIXELS = 15_000_000  # what PyAV decodes while decord does one seek (measured: H.264, 240 to 480 lines)
Size = int | tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Decoded:
    """frames: t h w 3; indices and seconds: of each frame in the file, seconds from its first frame; total: frames
    in the file; repeated: how many of the t frames are copies, because the clip is shorter than what was asked."""

    frames: UInt8[np.ndarray, "t h w 3"]
    indices: tuple[int, ...]
    seconds: tuple[float, ...]
    total: int
    repeated: int
    backend: str

    def sampled(self, policy: str, frames: int, multiple_of: int = 1) -> Decoded:
        """Fewer of these frames: of a clip that was decoded whole, what decoding it with this policy gives."""
        fps = (len(self.seconds) - 1) / (self.seconds[-1] - self.seconds[0]) if len(self.seconds) > 1 else 1.0
        chosen = sample(policy, len(self.indices), frames, fps, multiple_of)
        indices, seconds = tuple(self.indices[i] for i in chosen), tuple(self.seconds[i] for i in chosen)
        return replace(self, frames=self.frames[chosen], indices=indices, seconds=seconds, repeated=0)


def read_video(
    path: str | os.PathLike[str],
    frames: int = 16,
    policy: str = "linspace",
    size: Size = None,
    backend: str = "auto",
) -> UInt8[np.ndarray, "t h w 3"]:
    """The frames alone, RGB. size: the side of a square or (height, width), in pixels. Raises VideoError."""
    return decode(path, frames, policy, size, backend).frames


def decode(
    path: str | os.PathLike[str],
    frames: int,
    policy: str,
    size: Size,
    backend: str,
    multiple_of: int = 1,
    start: float | None = None,
    end: float | None = None,
) -> Decoded:
    """start, end: seconds from the first frame; the clip is what is on screen in [start, end). Raises VideoError."""
    _check_request(policy, frames, multiple_of, start, end)
    height_width = as_size(size)
    if backend not in BACKENDS:
        raise VideoError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    clip = probe(path)
    indices = _indices(clip, policy, frames, multiple_of, start, end)
    used, kept = "decord", _read_decord(clip, indices, height_width, backend)
    if kept is None:
        used, kept = "pyav", _read_pyav(clip, indices, height_width)
    if kept is None:
        clip = _recounted(clip)
        indices = _indices(clip, policy, frames, multiple_of, start, end)
        kept = _read_pyav(clip, indices, height_width)
    if kept is None or len({frame.shape for frame in kept.values()}) > 1:
        raise VideoError(f"{path}: its frames change size or count while it is read; ask for one size")
    array = np.stack([kept[index] for index in indices])
    seconds = tuple(clip.second(index) for index in indices)
    return Decoded(array, tuple(indices), seconds, clip.total, len(indices) - len(kept), used)


def sample(policy: str, total: int, frames: int, fps: float, multiple_of: int = 1) -> list[int]:
    """Frame indices in [0, total), never decreasing; a count that multiple_of does not divide is rounded down, to
    multiple_of at least. fps: of the video; only the policy fps:<rate> reads it and takes the centres of its segments.
    """
    rate = _rate(policy)
    _check_counts(total=total, frames=frames, multiple_of=multiple_of)
    if rate is not None:
        # Some containers round timestamps to the millisecond: ten seconds must not become 9.999 and lose a frame.
        frames = min(frames, int(total / fps * rate + 0.01))
    frames = max(frames - frames % multiple_of, multiple_of)
    if policy != "linspace":
        return [(2 * i + 1) * total // (2 * frames) for i in range(frames)]
    gaps = max(frames - 1, 1)
    return [(2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(frames)]


def _rate(policy: str) -> float | None:
    if policy in ("linspace", "centres"):
        return None
    match = re.fullmatch(r"fps:(\d+(?:\.\d+)?)", policy)
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


def versions(backend: str) -> str:
    """Names the code that decodes: frames cached under one answer must not be served under another."""
    names = {"auto": ("av", "decord"), "pyav": ("av",), "decord": ("decord",)}[backend]
    return " ".join(f"{name}={_version(name)}" for name in names)


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _check_request(policy: str, frames: int, multiple_of: int, start: float | None, end: float | None) -> None:
    _rate(policy)
    _check_counts(frames=frames, multiple_of=multiple_of)
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise VideoError(f"{name} must be seconds of at least 0, not {value!r}")
    if end is not None and end <= (start or 0):
        raise VideoError(f"end must come after start: {end!r} does not come after {start or 0!r} seconds")


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise VideoError(f"{name} must be a whole number of at least 1, not {value!r}")


def _indices(
    clip: Clip, policy: str, frames: int, multiple_of: int, start: float | None, end: float | None
) -> list[int]:
    """Positions in the file. A microsecond forgives what floats make of a timestamp."""
    shown, first, stop = range(clip.total), 0, clip.total
    if start is not None:
        if start >= clip.second(clip.total - 1) + 1 / clip.fps:
            raise VideoError(f"{clip.path}: ends before second {start:g}, where the clip should start")
        first = max(0, bisect_right(shown, start + 1e-6, key=clip.second) - 1)
    if end is not None:
        stop = max(first + 1, bisect_left(shown, end - 1e-6, key=clip.second))
    return [first + index for index in sample(policy, stop - first, frames, clip.fps, multiple_of)]


def _read_pyav(clip: Clip, indices: list[int], size: tuple[int, int] | None) -> dict[int, np.ndarray] | None:
    """None where the decoder shows other frames than the packets promised, so that positions would be wrong."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one for all frames: setting it up costs ten times its use on small ones
    kept: dict[int, np.ndarray] = {}
    wanted, last, count = set(indices), max(indices), 0
    for index, frame in enumerate(_shown(clip)):
        count = index + 1
        if clip.pts and (count > clip.total or frame.pts != clip.pts[index]):
            return None
        if index in wanted:
            if frame.is_corrupt:
                raise VideoError(f"{clip.path}: frame {index} is damaged")
            array = reformatter.reformat(frame, format="rgb24").to_ndarray()
            kept[index] = _resized(_upright(array, _matrix(frame)), size)
        if index == last and clip.pts:  # without timestamps only the whole count can confirm a position
            return kept
    return kept if count == clip.total else None


def _shown(clip: Clip) -> Iterator[Any]:
    """Every frame in display order, as decoded."""
    with opened(clip.path) as (container, stream):
        threads = 1 if clip.pixels < THREADED_PIXELS else min(4, os.cpu_count() or 1)
        stream.thread_type = "AUTO" if threads > 1 else "NONE"
        stream.codec_context.thread_count = threads
        for packet in container.demux(stream):
            yield from packet.decode()


def _recounted(clip: Clip) -> Clip:
    """For the few files whose packets and frames differ: what the decoder really shows, found by decoding it all. The
    last two packets may show nothing (packed B-frames); more than that means the end of the file is missing."""
    shown = [frame.pts for frame in _shown(clip)]
    known = None not in shown and all(before < after for before, after in itertools.pairwise(shown))
    promised = clip.pts[max(0, clip.total - 3)] if clip.pts and known else None
    if not shown or (len(shown) < clip.total - 2 if promised is None else shown[-1] < promised):
        raise VideoError(f"{clip.path}: truncated or damaged: only {len(shown)} of {clip.total} frames can be decoded")
    with opened(clip.path) as (_, stream):
        return clip_of(clip.path, len(shown), tuple(shown) if known else (), stream, clip.keys, "inexact packet counts")


def _read_decord(
    clip: Clip, indices: list[int], size: tuple[int, int] | None, backend: str
) -> dict[int, np.ndarray] | None:
    """None where PyAV should read instead: auto takes decord for clips so long that its seeks pay."""
    wanted = sorted(set(indices))
    pays = 2 * len(wanted) < clip.keys and len(wanted) * SEEK_PIXELS < clip.pixels
    if backend == "pyav" or (backend == "auto" and not pays):
        return None
    reason = "it is not installed" if _version("decord") == "absent" else clip.not_decord
    if reason is None and _matrix(next(_shown(clip))) is not None:
        reason = "its frames are rotated"
    if reason is None:
        import decord

        try:
            reader = decord.VideoReader(clip.path, num_threads=1)
            if len(reader) == clip.total:
                return {at: _resized(reader[at].asnumpy(), size) for at in wanted}
            reason = f"it counts {len(reader)} frames of {clip.total}"
        except decord.DECORDError as error:
            reason = str(error).strip().splitlines()[0]
    if backend == "auto":
        return None
    raise VideoError(f"{clip.path}: decord cannot read it exactly ({reason}); use backend auto or pyav")


def _matrix(frame: Any) -> np.ndarray | None:
    """The 2 x 2 part of the display matrix, signs only; None where frames are stored upright."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]
    matrix = np.sign(matrix) * (np.abs(matrix) > np.abs(matrix).max() / 2)
    return None if (matrix == np.eye(2)).all() else matrix


def _upright(array: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Row i of the matrix says where the stored axis i (x, y) points on the screen."""
    if matrix is None:
        return array
    if matrix[0, 1]:
        array = rearrange(array, "h w c -> w h c")
    x, y = matrix.sum(axis=0)
    return np.ascontiguousarray(array[:: int(y), :: int(x)])


def _resized(array: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or array.shape[:2] == size:
        return array
    return resize(torch.from_numpy(array)[None], size)[0].numpy()


def resize(frames: UInt8[torch.Tensor, "t h w 3"], size: tuple[int, int]) -> UInt8[torch.Tensor, "t h2 w2 3"]:
    """To (height, width), bicubic and antialiased, without cropping."""
    pixels = rearrange(frames.float(), "t h w c -> t c h w")
    pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True)
    return rearrange(pixels.round().clamp(0, 255).to(torch.uint8), "t c h w -> t h w c").contiguous()
