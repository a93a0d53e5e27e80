"""What a video file promises before a frame of it is decoded: how many frames, when each is shown, and whether the
file is all there. A demuxer stops quietly where a cut file stops, so the sizes that containers declare are read here.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# A positive list: playlists, manifests and text art would open too, and some of them name other files or hosts.
FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,gif,apng,flv,asf,ogg,rm,mxf,nut,dv,ivf,obu,h264,hevc,m4v,yuv4mpegpipe"
COVER = 0x400  # FFmpeg's disposition of a picture attached to a song


class VideoError(ValueError):
    """A video that cannot be read as asked; the message is one line, and names the file where a file is at fault."""


@dataclass(frozen=True, eq=False)
class Clip:
    """pts: of every frame in display order, in units of time_base seconds; empty where the packets do not say.
    fps: the mean rate. keys: frames that can be decoded alone. pixels: of all frames together.
    not_decord: why decord must not read this file."""

    path: str
    total: int
    pts: tuple[int, ...]
    time_base: float
    fps: float
    keys: int
    pixels: int
    not_decord: str | None

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
        if (last is not None and last.is_corrupt) or _tail_missing(path):
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
    pixels = stream.codec_context.width * stream.codec_context.height * total
    return Clip(os.fspath(path), total, pts, time_base, fps, keys, pixels, not_decord)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream. What FFmpeg complains about inside becomes a VideoError."""
    import av

    # Absolute, or a name with a colon would be read as a protocol.
    url = os.path.abspath(path)  # noqa: PTH100, resolving links would change what messages name
    try:
        with av.open(url, metadata_errors="replace", container_options={"format_whitelist": FORMATS}) as container:
            stream = container.streams.best("video")
            disposition = getattr(stream, "disposition", 0)  # absent in PyAV 14.0, an enumeration from then on
            if stream is None or getattr(disposition, "value", disposition) & COVER:
                raise VideoError(f"{path}: has no video stream")
            if stream.codec_context is None:
                raise VideoError(f"{path}: this PyAV has no decoder for its video stream")
            yield container, stream
    except (av.FFmpegError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: not a video, truncated or damaged ({reason})") from error


def _check_file(path: str | os.PathLike[str]) -> None:
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path}: {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a file'}, not a video")
    if status.st_size == 0:
        raise VideoError(f"{path}: the file is empty")


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
    steps = {after - before for before, after in itertools.pairwise(pts)}
    if not pts or (steps and max(steps) - min(steps) > 1):  # one tick of rounding
        return "a variable frame rate"
    return None


def _tail_missing(path: str | os.PathLike[str]) -> bool:
    """Whether the container declares more bytes than the file has; MPEG-TS, FLV and raw streams declare nothing."""
    with Path(path).open("rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _boxes_end(file, size) > size
        if head[:4] == b"RIFF":
            declared = int.from_bytes(head[4:8], "little")
            return declared != 0xFFFFFFFF and 8 + declared > size
        if head[:4] == b"\x1aE\xdf\xa3":
            return _segment_end(file) > size
        if head[:4] == b"GIF8":
            file.seek(max(0, size - 64))
            return not file.read().rstrip(b"\0").endswith(b";")
    return False


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last top-level box of an mp4 file ends."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8 or not head[4:8].isalnum():  # 0 reaches to the end of the file, anything else is not a box
            return size
        at += length
    return at


def _segment_end(file: BinaryIO) -> int:
    """Where the segment of a Matroska or WebM file ends; 0 where a live recorder left its length open."""
    file.seek(4)
    file.seek(max(0, _ebml_length(file)), os.SEEK_CUR)
    if file.read(4) != b"\x18S\x80g":
        return 0
    length = _ebml_length(file)
    return file.tell() + length if length >= 0 else 0


def _ebml_length(file: BinaryIO) -> int:
    """An EBML length: the leading zeros of its first byte say how many bytes follow; all ones means unknown, -1."""
    first = file.read(1)
    if not first or not first[0]:
        return -1
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + file.read(more), "big")
    return -1 if value == (1 << 7 * (more + 1)) - 1 else value
