"""Decoded frames on disk, found by what the file contains and what was asked of it, so that a sweep decodes once.

An entry is one safetensors file, written under a temporary name and renamed: processes may share a folder freely.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import time
import uuid
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tefusion.video import Decoded, Request, VideoError, decode, versions

PROTOCOL = 1  # raise it when the same request would decode to other frames
FIELDS = ("indices", "seconds", "total", "repeated", "backend")
STALE_SECONDS = 3600  # a temporary file this old was left by a process that died
UNFINISHED = ".tmp"
TICK_NS = 2_000_000_000  # a file that changed so lately may change again, and its times would not tell


class FrameCache:
    """limit_bytes bounds the folder: the entries read longest ago go first. With several processes the bound may be
    passed by an eighth for each of them, since a folder is measured once in a while and not at every write."""

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise VideoError(f"the frame cache needs a limit of at least 1 byte, not {limit_bytes}")
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes
        self._digests: dict[tuple[Any, ...], str] = {}
        self._warned = False
        self._room = 0  # bytes this process may still write before it measures the folder again

    def decode(self, path: str | os.PathLike[str], request: Request) -> Decoded:
        """What tefusion.video.decode returns, errors included; errors are not remembered. A cache that cannot be
        written to (full, read-only) warns once and decodes every time."""
        digest = self._digest(path)
        if digest is None:
            return decode(path, request)  # which says what is wrong
        key = _key(request, digest)
        name = hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
        entry = self.folder / name[:2] / f"{name}.safetensors"
        found = _read(entry, key)
        if found is None:
            found = decode(path, request)
            if self._digest(path) == digest:  # not replaced under our hands
                self._keep(entry, _packed(found, key))
        return found

    def _digest(self, path: str | os.PathLike[str]) -> str | None:
        """Of the whole content, once a process for a file that stays as it is; None where there is nothing to read."""
        try:
            real = os.path.realpath(path)
            status = os.stat(real)  # noqa: PTH116, this runs at every read
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
                return None
            seen = (real, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if seen in self._digests:
                return self._digests[seen]
            digest = hashlib.blake2b(digest_size=20)
            with open(real, "rb") as file:  # noqa: PTH123
                while block := file.read(1 << 20):
                    digest.update(block)
        except (OSError, ValueError):
            return None
        if time.time_ns() - status.st_ctime_ns > TICK_NS:
            self._digests[seen] = digest.hexdigest()
        return digest.hexdigest()

    def _keep(self, entry: Path, data: bytes) -> None:
        if len(data) > self.limit_bytes:
            return
        try:
            self._write(entry, data)
        except OSError as error:
            if not self._warned:
                self._warned = True
                reason = error.strerror or error
                warnings.warn(f"{self.folder}: frames are decoded anew each time, {reason}", stacklevel=3)

    def _write(self, entry: Path, data: bytes) -> None:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_name(f"{uuid.uuid4().hex}{UNFINISHED}")
        try:
            temporary.write_bytes(data)  # not flushed, which takes as long as decoding: a reader finds a torn entry
            _touch(temporary)
            temporary.replace(entry)
        finally:
            temporary.unlink(missing_ok=True)
        self._room -= len(data)
        if self._room < 0:
            self._room = self._shrink()

    def _shrink(self) -> int:
        """Measures the folder, deletes down to seven eighths where it is too full, and says how much may be written
        before it must be measured again."""
        entries = sorted(_entries(self.folder), key=lambda entry: entry[0])
        total = sum(size for _, size, _ in entries)
        if total > self.limit_bytes:
            for _, size, path in entries[:-1]:
                if total <= self.limit_bytes * 7 // 8:
                    break
                if path.endswith(UNFINISHED):  # another process is at it
                    continue
                Path(path).unlink(missing_ok=True)
                total -= size
        return min(self.limit_bytes - total, self.limit_bytes // 8)


def _entries(folder: Path) -> list[tuple[int, int, str]]:
    """(last use in ns, bytes, path) of every file, unfinished ones too; deletes what dead processes left on the way."""
    found = []
    old = time.time() - STALE_SECONDS
    for inner in [part for part in os.scandir(folder) if part.is_dir()]:
        for file in os.scandir(inner.path):
            try:
                status = file.stat()
            except FileNotFoundError:  # another process deleted it
                continue
            if file.name.endswith(UNFINISHED) and status.st_mtime < old:
                Path(file.path).unlink(missing_ok=True)
            else:
                found.append((status.st_mtime_ns, status.st_size, file.path))
    return found


def _touch(entry: Path) -> None:
    """Explicit, because a file system may record times to some milliseconds only. A folder that cannot be written to
    still serves its entries."""
    now = time.time_ns()
    with contextlib.suppress(OSError):
        os.utime(entry, ns=(now, now))


def _key(request: Request, digest: str) -> str:
    found = {"content": digest, "protocol": PROTOCOL, "versions": versions(request.backend)}
    return json.dumps(_asked(request) | found, sort_keys=True)


@lru_cache(maxsize=1024)  # a training asks the same of all its videos
def _asked(request: Request) -> dict[str, Any]:
    if not request.policy.startswith("fps:") and request.frames % request.multiple_of == 0:
        request = replace(request, multiple_of=1)  # nothing to round: all group sizes share an entry
    return asdict(request) | {"size": request.height_width}


def _packed(decoded: Decoded, key: str) -> bytes:
    fields = json.dumps({name: getattr(decoded, name) for name in FIELDS})
    body = decoded.frames.tobytes()
    checksum = str(zlib.crc32(body, zlib.crc32(fields.encode())))
    return _header(decoded.frames.shape, key, fields, checksum) + body


def _header(shape: Sequence[int], key: str, fields: str, crc32: str) -> bytes:
    """Of a safetensors file, written here so that a reader can tell every byte of it that is not as it was written."""
    frames = {"dtype": "U8", "shape": list(shape), "data_offsets": [0, math.prod(shape)]}
    text = json.dumps({"__metadata__": {"key": key, "fields": fields, "crc32": crc32}, "frames": frames})
    text += " " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text.encode()


def _read(entry: Path, key: str) -> Decoded | None:
    """None where there is no entry, or a damaged one, which the next write replaces. Parsed here, since the library's
    reader does not give the metadata with the tensor and would need a second look at the file."""
    try:
        with open(entry, "rb") as file:  # noqa: PTH123, four times as fast as Path.open
            data = bytearray(file.read())
        _touch(entry)
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:begin])
        fields, shape, body = header["__metadata__"]["fields"], header["frames"]["shape"], memoryview(data)[begin:]
        checksum = str(zlib.crc32(body, zlib.crc32(fields.encode())))
        if data[:begin] != _header(shape, key, fields, checksum):
            return None
        indices, seconds, total, repeated, backend = map(json.loads(fields).get, FIELDS)
        frames = np.frombuffer(body, np.uint8).reshape(shape)
        return Decoded(frames, tuple(indices), tuple(seconds), total, repeated, backend)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
