"""A saved model from anybody: what does not fit is one line, before memory is taken for it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from tefusion.choices import brief, in_short, listed
from tefusion.encoders.released import DTYPES, named
from tefusion.hub.configuration import TEFusionConfig, TEFusionVisionConfig
from tefusion.hub.modeling import TEFusionForConditionalGeneration
from tefusion.hub.processing import TEFusionProcessor
from tefusion.hub.tower import TEFusionVisionModel
from tefusion.json_files import read_object

UNLOADABLE = (  # what transformers and safetensors say of a stranger's files
    StrictDataclassError,
    SafetensorError,
    OSError,
    RuntimeError,
    AttributeError,
    TypeError,
    KeyError,
    ValueError,
)


def load_pretrained(folder: Path) -> tuple[TEFusionForConditionalGeneration, TEFusionProcessor]:
    """Raises ValueError that names what is missing, unexpected, of another shape or not finite."""
    with loadable(folder, TEFusionConfig, "model"):
        model = load(folder, TEFusionConfig, TEFusionForConditionalGeneration)
        processor = TEFusionProcessor.from_pretrained(folder)
    check_finite(folder, model)
    return model, processor


def load_tower(folder: Path) -> TEFusionVisionModel:
    """A tower alone. Raises ValueError as `load_pretrained` does."""
    with loadable(folder, TEFusionVisionConfig, "tower"):
        model = load(folder, TEFusionVisionConfig, TEFusionVisionModel)
    check_finite(folder, model)
    return model


@contextmanager
def loadable(folder: Path, config: type[PreTrainedConfig], noun: str) -> Iterator[None]:
    """Whatever is wrong with a folder that should be of this kind, as one ValueError."""
    kind = read_object(folder / "config.json").get("model_type")
    if kind != config.model_type:
        raise ValueError(f"{folder} holds no {noun} of tefusion: its model_type is {brief(kind)}")
    try:
        yield
    except UNLOADABLE as error:
        raise ValueError(f"{folder} cannot be loaded: {in_short(error)}") from None


def load(folder: Path, config: type[PreTrainedConfig], model: type[PreTrainedModel]) -> Any:
    """Held against its files' headers before any of them is read."""
    with torch.device("meta"):
        expected = model(config.from_pretrained(folder))
    check_headers(folder, expected)
    return model.from_pretrained(folder)


def check_finite(folder: Path, model: PreTrainedModel) -> None:
    if odd := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"{folder} cannot be loaded: {listed([f'{name} is not finite' for name in odd])}")


def check_headers(folder: Path, model: PreTrainedModel) -> None:
    """Raises ValueError where the files promise other tensors than the model has; none is read."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                found[name] = tuple(part.get_shape()), part.get_dtype()
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys)
    problems = [f"{name} is missing" for name in own if name not in found and name not in tied]
    problems += [f"{named(name)} is unexpected" for name in found if name not in own]
    both = [name for name in own if name in found]
    problems += [f"{name} is {found[name][0]} instead of {own[name]}" for name in both if found[name][0] != own[name]]
    problems += [
        f"{name} is stored as {found[name][1]}, not as numbers" for name in both if found[name][1] not in DTYPES
    ]
    if problems:
        raise ValueError(listed(problems))


def weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict):
        raise ValueError(f"{index.name} has no weight_map from tensors to files")
    files = sorted({str(file) for file in placed.values()})
    if strange := [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]:
        raise ValueError(f"{index.name} names {json.dumps(strange[0])[:80]}, no safetensors file of the folder")
    return [folder / file for file in files]
