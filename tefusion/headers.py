"""What a file declares of itself, read without a demuxer: one stops quietly where a cut file stops, and makes an index
entry for every sample that a header claims.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

HOLDERS = {b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"moof", b"traf"}  # mp4's boxes around those below
FIELDS = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"elst": 4, b"hdlr": 8}  # where in them the field is that counts here


def tail_missing(path: str | os.PathLike[str]) -> bool:
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


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an mp4 file from `at` to `end`: name, where the content begins, where it should end. What is no box
    ends them."""
    while at + 8 <= end:
        file.seek(at)
        head = file.read(16)
        length, begin = int.from_bytes(head[:4], "big"), at + 8
        if length == 1:
            length, begin = int.from_bytes(head[8:16], "big"), at + 16
        elif length == 0:  # to the end of what is around it
            length = end - at
        if length < begin - at or not head[4:8].isalnum():
            return
        yield head[4:8], begin, at + length
        at += length


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last top-level box of an mp4 file ends."""
    return max((end for _, _, end in _boxes(file, 0, size)), default=size)


def samples_promised(file: BinaryIO, size: int) -> int:
    """How many samples the tables of an mp4 file promise, as often as its edit lists may show them; 0 for other files.
    Sound can have less than a byte a sample, and many: eight of its samples count as one."""
    tracks: list[Counter[bytes]] = [Counter()]  # first what lies in no track: fragments
    ranges = [(0, size, tracks[0])]
    while ranges:  # no recursion: boxes may nest as deep as a file is long
        at, end, track = ranges.pop()
        for name, begin, stop in _boxes(file, at, end):
            if name in HOLDERS:
                if name == b"trak":
                    tracks.append(Counter())
                ranges.append((begin, min(stop, end), tracks[-1] if name == b"trak" else track))
            elif name in FIELDS:
                file.seek(begin + FIELDS[name])
                field = file.read(4)
                track[field if name == b"hdlr" else name] += 1 if name == b"hdlr" else int.from_bytes(field, "big")
    return sum(_shown(track) for track in tracks)


def _shown(track: Counter[bytes]) -> int:
    samples = track[b"stsz"] + track[b"stz2"] + track[b"trun"]
    return samples // 8 if track[b"soun"] and not track[b"vide"] else samples * max(1, track[b"elst"])


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
