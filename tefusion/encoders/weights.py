"""Weights from elsewhere: a GLM-4V-9B folder -> our encoder; a trained image model -> a model with any compressor."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tefusion.choices import listed
from tefusion.compressors import Compressor
from tefusion.encoders.config import VisionConfig
from tefusion.encoders.inflate import inflate
from tefusion.encoders.patchify import resample_positions
from tefusion.encoders.released import DTYPES, PREFIX, Checkpoint, named, read_config, released_name, released_shape
from tefusion.tensor_files import load_tensors
from tefusion.vision import VideoEncoder, assemble, method_for
from tefusion.vlm import VLM

BOUNDARIES = PREFIX + "boi", PREFIX + "eoi"


def load_glm4v(
    folder: str | Path,
    compressor: str = "none",
    k: int = 1,
    image_size: int = 224,
    dtype: torch.dtype | None = None,
    **options: object,
) -> VideoEncoder:
    """The vision branch of a GLM-4V-9B folder, in its stored precision where `dtype` is None.

    `image_size` is the side in pixels to which positions are resampled. `options` go to the compressor, which keeps
    its initial values. Memory holds the parameters once and one tensor more. boi and eoi belong to the VLM:
    `read_boundaries`. Raises one ValueError that names the tensors that do not fit, a hundred at most.
    """
    released = read_config(Path(folder))
    config = replace(released, image_size=image_size)
    if min(config.grid) < 2:
        raise ValueError(f"{folder}: image_size {image_size} is smaller than 2x2 patches of {config.patch_size} pixels")
    checkpoint = Checkpoint(Path(folder))
    checkpoint.check_room(config)
    method = method_for(config, compressor, k, **options)
    with torch.device("meta"):
        encoder = assemble(config, method)
    dtype = dtype or checkpoint.dtype
    fill(encoder, checkpoint, released, config, dtype)
    for name in BOUNDARIES:
        checkpoint.read(name, (1, 1, released.embed_dim))
    for name in unused(method):
        checkpoint.unread.discard(released_name(name))
    checkpoint.problems += [f"{named(name)} is unexpected" for name in sorted(checkpoint.unread)]
    checkpoint.complain()
    encoder.compressor.to(dtype)
    return encoder


def fill(
    encoder: VideoEncoder, checkpoint: Checkpoint, released: VisionConfig, config: VisionConfig, dtype: torch.dtype
) -> None:
    """Every parameter but the compressor's becomes the released one, as far as it fits."""
    frames = widened(encoder.compressor)
    for name, parameter in list(encoder.named_parameters()):
        if name.startswith("compressor."):
            continue
        tensor = checkpoint.read(released_name(name), released_shape(name, parameter, released))
        if tensor is None:
            continue
        if name == "tower.patchify.position":
            tensor = resample_positions(tensor.float(), released.grid, config.grid)
        tensor = tensor.flatten(1) if tensor.dim() == 4 else tensor
        tensor = inflate(tensor.to(dtype), frames[name]) if name in frames else tensor.to(dtype, copy=True)
        module, _, leaf = name.rpartition(".")
        setattr(encoder.get_submodule(module), leaf, nn.Parameter(tensor))


def read_boundaries(
    folder: str | Path, dtype: torch.dtype | None = None
) -> tuple[Float[Tensor, "1 e"], Float[Tensor, "1 e"]]:
    """boi and eoi of a GLM-4V-9B folder as the decoder sees them: divided by the tower's scale.

    Raises one ValueError that says what is wrong with the files or with the two.
    """
    config, checkpoint = read_config(Path(folder)), Checkpoint(Path(folder))
    read = [checkpoint.read(name, (1, 1, config.embed_dim)) for name in BOUNDARIES]
    checkpoint.complain()
    boi, eoi = (tensor[0].to(dtype or checkpoint.dtype) / config.scale for tensor in read if tensor is not None)
    return boi, eoi


def widened(method: Compressor) -> dict[str, int]:
    """The encoder's maps that a compressor widens, and to how many frames."""
    frames = {"tower.patchify.proj.weight": method.in_frames, "projector.merge.proj.weight": method.out_frames}
    return {name: k for name, k in frames.items() if k > 1}


def unused(method: Compressor) -> tuple[str, ...]:
    """The image model's maps in whose place a compressor has its own."""
    return ("projector.merge.proj.weight", "projector.merge.proj.bias") if method.owns_merge else ()


@torch.no_grad()
def load_image_weights(model: VLM, state: Mapping[str, Tensor]) -> None:
    """A VLM with any compressor starts as the trained image VLM whose state this is; `encoder.compressor.*` stays.

    Raises one ValueError that names the tensors that do not fit, and then the model is as it was.
    """
    state = {
        name: t for name, t in state.items() if name.removeprefix("encoder.") not in unused(model.encoder.compressor)
    }
    own = {name: t for name, t in model.state_dict().items() if not name.startswith("encoder.compressor.")}
    frames = {f"encoder.{name}": k for name, k in widened(model.encoder.compressor).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    shapes |= {name: (shapes[name][0], shapes[name][1] // k) for name, k in frames.items()}
    if problems := misfits(state, shapes):
        raise ValueError(f"the image model does not fit: {listed(problems)}")
    for name, tensor in own.items():
        tensor.copy_(inflate(state[name], frames[name]) if name in frames else state[name])


def load_weights(model: nn.Module, file: Path) -> None:
    """The model becomes what the file holds. Raises ValueError that names the file and the tensors that do not fit,
    and then the model is as it was."""
    state = load_tensors(file)
    if problems := misfits(state, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}):
        raise ValueError(f"{file} does not fit: {listed(problems)}")
    model.load_state_dict(state)


def misfits(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps these tensors from being the parameters of these shapes."""
    problems = [f"{name} is missing" for name in shapes if name not in state]
    problems += [f"{named(name)} is unexpected" for name in state if name not in shapes]
    for name, tensor in ((name, state[name]) for name in shapes if name in state):
        if tuple(tensor.shape) != shapes[name]:
            problems.append(f"{name} is {tuple(tensor.shape)} instead of {shapes[name]}")
        elif tensor.dtype not in DTYPES.values():
            problems.append(f"{name} is stored as {tensor.dtype}, not as floating-point numbers")
        elif not tensor.isfinite().all():
            problems.append(f"{name} is not finite")
    return problems
