"""What a video file promises before a frame of it is decoded: how many frames, when each is shown, and whether the
file is all there and can be believed.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tefusion.headers import samples_promised, tail_missing

# A positive list: playlists, manifests and text art would open too, and some of them name other files or hosts.
FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,gif,apng,flv,asf,ogg,rm,mxf,nut,dv,ivf,obu,h264,hevc,m4v,yuv4mpegpipe"
COVER = 0x400  # FFmpeg's disposition of a picture attached to a song
MOST_PIXELS = 8192 * 4352  # of a frame: cinema 8K, its height rounded up by the codec; a header may claim anything


class VideoError(ValueError):
    """A video that cannot be read as asked; the message is one line, and names the file where a file is at fault."""


@dataclass(frozen=True, eq=False)
class Clip:
    """pts: of every frame in display order, in units of time_base seconds; empty where the packets do not say.
    fps: the mean rate. keys: frames that can be decoded alone. height, width: as stored and as the header says.
    not_decord: why decord must not read this file."""

    path: str
    total: int
    pts: tuple[int, ...]
    time_base: float
    fps: float
    keys: int
    height: int
    width: int
    not_decord: str | None

    @property
    def pixels(self) -> int:
        """Of all frames together."""
        return self.total * self.height * self.width

    def second(self, index: int) -> float:
        """Counted from the first frame."""
        return (self.pts[index] - self.pts[0]) * self.time_base if self.pts else index / self.fps


def probe(path: str | os.PathLike[str]) -> Clip:
    """Reads every packet and decodes none. Raises VideoError for anything that is not a complete video file."""
    _check_file(path)
    with opened(path) as (container, stream):
        pts, keys, plain, last = [], 0, True, None
        for packet in container.demux(stream):
            if not packet.size:
                continue
            last = packet
            if packet.is_keyframe:
                keys += 1
                plain = plain and _is_idr(stream, packet)
            if packet.is_discard:  # cut away by an edit list: decoded for reference, never shown
                plain = False
            else:
                pts.append(packet.pts)
        if (last is not None and last.is_corrupt) or tail_missing(path):
            raise VideoError(f"{path}: truncated: the file ends before its last frame")
        if not pts:
            raise VideoError(f"{path}: the video stream holds no frames")
        known = None not in pts and len(set(pts)) == len(pts)
        table = tuple(sorted(pts)) if known else ()
        not_decord = _not_decord(container, stream, table) if plain else "frames that cannot be reached on their own"
        return clip_of(path, len(pts), table, stream, keys, not_decord)


def clip_of(path: Any, total: int, pts: tuple[int, ...], stream: Any, keys: int, not_decord: str | None) -> Clip:
    time_base = float(stream.time_base)
    if len(pts) > 1:
        fps = (len(pts) - 1) / ((pts[-1] - pts[0]) * time_base)
    else:
        fps = float(stream.average_rate or stream.guessed_rate or 1)
    height, width = stream.codec_context.height, stream.codec_context.width
    return Clip(os.fspath(path), total, pts, time_base, fps, keys, height, width, not_decord)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream. What FFmpeg complains about inside becomes a VideoError. A frame of more than
    MOST_PIXELS is refused by the header, and by the decoder before it allocates one that the header did not announce.
    """
    import av

    # Absolute, or a name with a colon would be read as a protocol.
    url = os.path.abspath(path)  # noqa: PTH100, resolving links would change what messages name
    bound, only = {"max_pixels": str(MOST_PIXELS)}, {"format_whitelist": FORMATS}
    try:
        with av.open(url, metadata_errors="replace", options=bound, container_options=only) as container:
            stream = container.streams.best("video")
            disposition = getattr(stream, "disposition", 0)  # absent in PyAV 14.0, an enumeration from then on
            if stream is None or getattr(disposition, "value", disposition) & COVER:
                raise VideoError(f"{path}: has no video stream")
            if stream.codec_context is None:
                raise VideoError(f"{path}: this PyAV has no decoder for its video stream")
            _check_header(path, stream)
            stream.codec_context.options = bound
            yield container, stream
    except (av.FFmpegError, IndexError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: not a video, truncated or damaged ({reason})") from error


def _check_header(path: str | os.PathLike[str], stream: Any) -> None:
    height, width = stream.codec_context.height, stream.codec_context.width
    if height * width > MOST_PIXELS:
        raise VideoError(f"{path}: its header claims frames of {width} x {height} pixels, more than any video has")
    if not stream.time_base:
        raise VideoError(f"{path}: damaged: its header gives frames no unit of time")


def _check_file(path: str | os.PathLike[str]) -> None:
    """Looks before it opens: opening a pipe would wait for a writer, and a device might act."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(f"{path}: {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a file'}, not a video")
        if status.st_size == 0:
            raise VideoError(f"{path}: the file is empty")
        with Path(path).open("rb") as file:
            samples = samples_promised(file, status.st_size)
    except VideoError:
        raise
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if samples > status.st_size:  # less than a byte each; FFmpeg makes an index entry of, and decodes, every one
        raise VideoError(f"{path}: damaged: its header promises {samples} frames in {status.st_size} bytes")


def _is_idr(stream: Any, packet: Any) -> bool:
    """H.264 calls other frames keys too (recovery points, open groups): after those, a sparse reader shows wrong
    frames. An IDR frame has a NAL unit of type 5; in mp4 and mkv each unit follows its length."""
    header = stream.codec_context.extradata or b""
    if stream.codec_context.name != "h264" or len(header) < 5 or header[0] != 1:
        return False
    width, data, at = (header[4] & 3) + 1, bytes(packet), 0
    while at + width < len(data):
        if data[at + width] & 31 == 5:
            return True
        at += width + int.from_bytes(data[at : at + width], "big")
    return False


def _not_decord(container: Any, stream: Any, pts: tuple[int, ...]) -> str | None:
    if not set(container.format.name.split(",")) & {"mov", "matroska"}:
        return f"the container {container.format.name}"
    if stream.codec_context.pix_fmt != "yuv420p":
        return f"the pixel format {stream.codec_context.pix_fmt}"
    if stream.frames not in (0, len(pts)):  # decord makes room for all that the header promises, and aborts
        return "a header that counts other frames than there are"
    steps = {after - before for before, after in itertools.pairwise(pts)}
    if not pts or (steps and max(steps) - min(steps) > 1):  # one tick of rounding
        return "a variable frame rate"
    return None
