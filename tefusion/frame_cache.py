"""Decoded frames on disk, found by what the file contains and what was asked of it, so that a sweep decodes once.

An entry is one safetensors file, written under a temporary name and renamed: processes may share a folder freely.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tefusion.video import BACKENDS, Decoded, Size, VideoError, as_size, decode, versions

PROTOCOL = 1  # raise it when the same request would decode to other frames
FIELDS = ("indices", "seconds", "total", "repeated", "backend")
STALE_SECONDS = 3600  # a temporary file this old was left by a process that died


class FrameCache:
    """limit_bytes bounds the folder: the entries read longest ago go first. With several processes the bound may be
    passed by an eighth for each of them, since a folder is measured once in a while and not at every write."""

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise VideoError(f"the frame cache needs a limit of at least 1 byte, not {limit_bytes}")
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes
        self._digests: dict[tuple[Any, ...], str] = {}
        self._room = 0  # bytes this process may still write before it measures the folder again

    def decode(
        self,
        path: str | os.PathLike[str],
        frames: int,
        policy: str,
        size: Size,
        backend: str,
        multiple_of: int = 1,
        start: float | None = None,
        end: float | None = None,
    ) -> Decoded:
        """What tefusion.video.decode returns for the same arguments, errors included; errors are not remembered."""
        if not policy.startswith("fps:") and multiple_of > 0 and frames % multiple_of == 0:
            multiple_of = 1  # nothing to round: all group sizes share an entry
        request = {"frames": frames, "policy": policy, "size": as_size(size), "multiple_of": multiple_of}
        request |= {"start": start, "end": end, "backend": backend, "protocol": PROTOCOL}
        digest = self._digest(path)
        if digest is None or backend not in BACKENDS:
            return decode(path, frames, policy, size, backend, multiple_of, start, end)  # which says what is wrong
        key = json.dumps(request | {"versions": versions(backend), "content": digest}, sort_keys=True)
        name = hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
        entry = self.folder / name[:2] / f"{name}.safetensors"
        found = _read(entry, key)
        if found is None:
            found = decode(path, frames, policy, size, backend, multiple_of, start, end)
            if self._digest(path) == digest:  # not replaced under our hands
                self._write(entry, _packed(found, key))
        return found

    def _digest(self, path: str | os.PathLike[str]) -> str | None:
        """Of the whole content, once a process for a file that stays as it is; None where there is nothing to read."""
        try:
            real = os.path.realpath(path)
            status = os.stat(real)  # noqa: PTH116, this runs at every read
            seen = (real, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if seen not in self._digests:
                digest = hashlib.blake2b(digest_size=20)
                with open(real, "rb") as file:  # noqa: PTH123
                    while block := file.read(1 << 20):
                        digest.update(block)
                self._digests[seen] = digest.hexdigest()
            return self._digests[seen]
        except (OSError, ValueError):
            return None

    def _write(self, entry: Path, data: bytes) -> None:
        if len(data) > self.limit_bytes:
            return
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_name(f"{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(data)
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
                Path(path).unlink(missing_ok=True)
                total -= size
        return min(self.limit_bytes - total, self.limit_bytes // 8)


def _entries(folder: Path) -> list[tuple[int, int, str]]:
    """(last use in ns, bytes, path) of every entry; deletes what dead processes left on the way."""
    found = []
    old = time.time() - STALE_SECONDS
    for inner in [part for part in os.scandir(folder) if part.is_dir()]:
        for file in os.scandir(inner.path):
            try:
                status = file.stat()
            except FileNotFoundError:  # another process deleted it
                continue
            if file.name.endswith(".tmp") and status.st_mtime < old:
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


def _packed(decoded: Decoded, key: str) -> bytes:
    fields = json.dumps({name: getattr(decoded, name) for name in FIELDS})
    checksum = zlib.crc32(decoded.frames.tobytes(), zlib.crc32(fields.encode()))
    return save({"frames": decoded.frames}, {"key": key, "fields": fields, "crc32": str(checksum)})


def _read(entry: Path, key: str) -> Decoded | None:
    """None where there is no entry, or a damaged one, which the next write replaces. Parsed here, since the library's
    reader does not give the metadata with the tensor and would need a second look at the file."""
    try:
        with open(entry, "rb") as file:  # noqa: PTH123, four times as fast as Path.open
            data = bytearray(file.read())
        _touch(entry)
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:begin])
        meta, shape = header["__metadata__"], header["frames"]["shape"]
        body = memoryview(data)[begin:]
        if meta["key"] != key or zlib.crc32(body, zlib.crc32(meta["fields"].encode())) != int(meta["crc32"]):
            return None
        indices, seconds, total, repeated, backend = map(json.loads(meta["fields"]).get, FIELDS)
        frames = np.frombuffer(body, np.uint8).reshape(shape)
        return Decoded(frames, tuple(indices), tuple(seconds), total, repeated, backend)
    except (OSError, ValueError, KeyError, TypeError):
        return None
