"""Weights on disk: safetensors only, whole or not there at all."""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from tefusion.score import replace_file


def save_whole(state: dict[str, Tensor], path: Path) -> None:
    """Tied weights are written twice: a file stays readable name by name."""
    replace_file(path, save({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}))
