"""A safetensors file written one tensor at a time, so that no more than one is in memory; hashed on its way."""

import hashlib
import json
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from tefusion.convert.move import Slot, ends
from tefusion.encoders.released import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK = 1 << 20  # bytes


class Record(NamedTuple):
    bytes: int
    sha256: str


class ShardWriter:
    """The header says at once what will come; `write` takes the tensors in that order.

    The format: eight bytes with the header's length, the header as JSON, the numbers (safetensors, format.md).
    """

    def __init__(self, path: Path, slots: Sequence[tuple[Slot, torch.dtype]]):
        self.left = [slot.shape for slot, _ in slots]
        self.hash, self.size = hashlib.sha256(), 0
        places = ends([prod(slot.shape) * dtype.itemsize for slot, dtype in slots])
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for (slot, dtype), (start, stop) in zip(slots, places, strict=True):
            header[slot.name] = {"dtype": NAMES[dtype], "shape": slot.shape, "data_offsets": [start, stop]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.file = path.open("wb")
        self.put(len(text).to_bytes(8, "little") + text)

    def put(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.size += len(data)

    def write(self, tensor: Tensor) -> None:
        if tuple(tensor.shape) != self.left.pop(0):
            raise RuntimeError(f"the header promises another shape than {tuple(tensor.shape)}")
        self.put(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def close(self) -> Record:
        if self.left:
            raise RuntimeError(f"the header promises {len(self.left)} tensors more")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return Record(self.size, self.hash.hexdigest())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


def record_of(path: Path) -> Record:
    """A file's size and hash as they are on the disk."""
    made, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            made.update(chunk)
            size += len(chunk)
    return Record(size, made.hexdigest())
