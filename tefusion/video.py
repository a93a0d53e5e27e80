"""A video file becomes the sampled frames, each of them the frame it claims to be.

PyAV read in order is the definition. decord reads sparsely and is used only where that is both exact and worth it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import UInt8

from tefusion.containers import Clip, VideoError, clip_of, opened, probe
from tefusion.pictures import is_pictures, picture_clip, read_pictures
from tefusion.sampling import Request, Size, parse_size, sample

__all__ = ["Decoded", "Request", "VideoError", "decode", "parse_size", "read_video", "sample", "versions"]

MOST_BYTES = 4 << 30  # of the frames of one request: what a small file can unfold to has no other bound
THREADED_PIXELS = 50_000_000  # in a smaller clip, starting the decoder's threads costs more than they save
SEEK_PIXELS = 15_000_000  # what PyAV decodes while decord does one seek (measured: H.264, 240 to 480 lines)


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
    """The frames alone, RGB, upright as a player shows them. size: the side of a square or (height, width), in pixels.
    Raises VideoError."""
    return decode(path, Request(frames, policy, size, backend=backend)).frames


def decode(path: str | os.PathLike[str], request: Request) -> Decoded:
    """Frames come upright: a file's rotation or mirroring is applied, whatever the backend; at an angle, the nearest
    quarter turn. The file is opened and closed inside, so processes may fork before and after. A folder of pictures
    is read as a video. Raises VideoError."""
    pictures, size = is_pictures(path), request.height_width
    clip = picture_clip(path) if pictures else probe(path)
    indices = _indices(clip, request)
    _check_room(clip.path, len(indices), *(size or (clip.height, clip.width)))
    kept: dict[int, np.ndarray] | None
    if pictures:
        used, kept = "pictures", {at: _resized(frame, size) for at, frame in read_pictures(clip, indices).items()}
    else:
        used, kept = "decord", _read_decord(clip, indices, request)
    if kept is None:
        used, kept = "pyav", _read_pyav(clip, indices, size)
    if kept is None:
        clip = _recounted(clip)
        indices = _indices(clip, request)
        kept = _read_pyav(clip, indices, size)
    if kept is None or len({frame.shape for frame in kept.values()}) > 1:
        raise VideoError(f"{path}: its frames change size or count while it is read; ask for one size")
    array = np.stack([kept[index] for index in indices])
    seconds = tuple(clip.second(index) for index in indices)
    return Decoded(array, tuple(indices), seconds, clip.total, len(indices) - len(kept), used)


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


def _indices(clip: Clip, request: Request) -> list[int]:
    """Positions in the file. A microsecond forgives what floats make of a timestamp."""
    shown, first, stop = range(clip.total), 0, clip.total
    start, end = request.start, request.end
    if start is not None:
        if start >= clip.second(clip.total - 1) + 1 / clip.fps:
            raise VideoError(f"{clip.path}: ends before second {start:g}, where the clip should start")
        first = max(0, bisect_right(shown, start + 1e-6, key=clip.second) - 1)
    if end is not None:
        stop = max(first + 1, bisect_left(shown, end - 1e-6, key=clip.second))
    chosen = sample(request.policy, stop - first, request.frames, clip.fps, request.multiple_of)
    return [first + index for index in chosen]


def _check_room(path: str, count: int, height: int, width: int) -> None:
    if count * height * width * 3 > MOST_BYTES:
        raise VideoError(f"{path}: {count} frames of {height} x {width} pixels do not fit into {MOST_BYTES >> 30} GiB")


def _read_pyav(clip: Clip, indices: list[int], size: tuple[int, int] | None) -> dict[int, np.ndarray] | None:
    """None where the decoder shows other frames than the packets promised, so that positions would be wrong."""
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # one for all frames: setting it up costs ten times its use on small ones
    kept: dict[int, np.ndarray] = {}
    matrix = None
    wanted, last, count = set(indices), max(indices), 0
    for index, frame in enumerate(_shown(clip)):
        count = index + 1
        if index == 0:  # once: looking at its side data ties a frame into a cycle, which lives until it is collected
            matrix = _matrix(frame)
        if clip.pts and (count > clip.total or frame.pts != clip.pts[index]):
            return None
        if index in wanted:
            if frame.is_corrupt:
                raise VideoError(f"{clip.path}: frame {index} is damaged")
            _check_room(clip.path, len(indices), *(size or (frame.height, frame.width)))
            array = reformatter.reformat(frame, format="rgb24").to_ndarray()
            kept[index] = _resized(_upright(array, matrix), size)
        if index == last and clip.pts:  # without timestamps only the whole count can confirm a position
            return kept
    return kept if count == clip.total else None


def _shown(clip: Clip) -> Iterator[Any]:
    """Every frame in display order, as decoded."""
    with opened(clip.path) as (container, stream):
        threads = 1 if clip.pixels < THREADED_PIXELS else min(4, os.cpu_count() or 1)
        stream.thread_type = "AUTO" if threads > 1 else "NONE"
        stream.codec_context.thread_count = threads
        with closing(container.demux(stream)) as packets:  # before the container: else a read that stops early leaks
            for packet in packets:
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


def _read_decord(clip: Clip, indices: list[int], request: Request) -> dict[int, np.ndarray] | None:
    """None where PyAV should read instead: auto takes decord for clips so long that its seeks pay."""
    wanted, backend, size = sorted(set(indices)), request.backend, request.height_width
    pays = 2 * len(wanted) < clip.keys and len(wanted) * SEEK_PIXELS < clip.pixels
    if backend == "pyav" or (backend == "auto" and not pays):
        return None
    reason = _not_decord(clip)
    if reason is None:
        import decord

        decord.logging.set_level(decord.logging.QUIET)  # what it finds wrong is in the error
        try:
            reader = decord.VideoReader(clip.path, num_threads=1)
            if len(reader) != clip.total:
                reason = f"it counts {len(reader)} frames of {clip.total}"
            elif reader[0].shape != (clip.height, clip.width, 3):  # it pads the rows of some narrow frames
                reason = f"it gives frames of shape {reader[0].shape}"
            else:
                return {at: _resized(reader[at].asnumpy(), size) for at in wanted}
        except (decord.DECORDError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
    if backend == "auto":
        return None
    raise VideoError(f"{clip.path}: decord cannot read it exactly ({reason}); use backend auto or pyav")


def _not_decord(clip: Clip) -> str | None:
    if _version("decord") == "absent":
        return "it is not installed"
    if clip.not_decord is not None:
        return clip.not_decord
    first = next(_shown(clip), None)
    if first is None:
        return "its first frame cannot be decoded"
    return None if _matrix(first) is None else "its frames are rotated"


def _matrix(frame: Any) -> np.ndarray | None:
    """The 2 x 2 part of the display matrix, signs only; None where frames are stored upright, or where it has no
    nearest quarter turn: players show the zeros that some recorders write as if nothing was said."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].astype(float)
    matrix = np.sign(matrix) * (np.abs(matrix) > np.abs(matrix).max() / 2)
    turned = np.abs(matrix).tolist() in ([[1, 0], [0, 1]], [[0, 1], [1, 0]])
    return matrix if turned and (matrix != np.eye(2)).any() else None


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
    import torch

    from tefusion.resize import resize

    return resize(torch.from_numpy(array)[None], size)[0].numpy()
