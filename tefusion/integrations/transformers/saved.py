"""A compressed model that `save_pretrained` wrote, whole again: its own class, its compressor, k and weights."""

from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig

from tefusion.choices import brief, listed, nearest
from tefusion.integrations.transformers.compress_video import CompressedVideo, compress_video_
from tefusion.json_files import read_object

PREFIX = "video_compressor."


def load_compressed(folder: str | Path, **options: Any) -> CompressedVideo:
    """`options` go to the model's `from_pretrained`. Raises ValueError on a folder without a compressor, and names
    every weight that is missing, unexpected or mis-shaped."""
    folder = Path(folder)
    settings = read_object(folder / "config.json").get("video_compressor")
    if not isinstance(settings, dict) or set(settings) != {"compressor", "k", "options"}:
        raise ValueError(f"{folder} holds no compressed model: its config.json has video_compressor {brief(settings)}")
    model, info = model_class(folder).from_pretrained(folder, output_loading_info=True, **options)
    stray = [name for name in info["unexpected_keys"] if PREFIX not in name]
    problems = [*info["missing_keys"], *stray, *(str(name) for name in info["mismatched_keys"])]
    if problems:
        raise ValueError(f"{folder}: missing, unexpected or mis-shaped weights: {listed(sorted(problems))}")
    compressed = compress_video_(model, settings["compressor"], settings["k"], **settings["options"])
    fill(compressed.module, compressor_weights(folder), folder)
    return compressed


def model_class(folder: Path) -> Any:
    names = AutoConfig.from_pretrained(folder).architectures or []
    found = getattr(transformers, names[0], None) if names else None
    if found is None:
        raise ValueError(f"{folder}: its config.json names no class of transformers: {brief(names)}")
    return found


def compressor_weights(folder: Path) -> dict[str, Tensor]:
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                if PREFIX in name:
                    weights[name.partition(PREFIX)[2]] = file.get_tensor(name)
    return weights


def fill(module: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in wanted.keys() - weights]
    problems += [f"{name} is unexpected{nearest(name, wanted)}" for name in weights.keys() - wanted]
    problems += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights
        if weights[name].shape != wanted[name].shape
    ]
    if problems:
        raise ValueError(f"{folder}: the compressor's weights do not fit: {listed(sorted(problems))}")
    module.load_state_dict(weights)
