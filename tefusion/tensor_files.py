"""Safetensors from strangers: the tensors, or one line that says why there are none."""

from pathlib import Path
from typing import IO

from safetensors import SafetensorError
from torch import Tensor

from tefusion.choices import in_short
from tefusion.json_files import decode


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Mapped from the file: they cost no memory until they are read. Raises ValueError that names the file."""
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        with path.open("rb") as file:
            check_names(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file ({in_short(error)})") from None
    return tensors


def check_names(file: IO[bytes]) -> None:
    """Of a file that the library can read: where a tensor comes twice, which the format forbids, it takes the last
    without a word. Raises ValueError."""
    size = int.from_bytes(file.read(8), "little")
    decode(file.read(size))
