"""What a training is between two steps, as tensors by name and back: weights, optimizers, random states."""

import json
import random
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import Optimizer

from tefusion.shards import Spec, spec

KEYS = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}


def tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """model/<name>, and <optimizer>/<parameter>/<key> for every parameter that was ever stepped."""
    found = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for optimizer in optimizers:
        for prefix, parameter in owned(model, optimizer).items():
            found |= {prefix + key: tensor for key, tensor in optimizer.state.get(parameter, {}).items()}
    return found


def expected(model: nn.Module, optimizers: Sequence[Optimizer], names: Collection[str]) -> dict[str, Spec]:
    """What has to be there: all weights, and of each parameter all of its optimizer's state, or nothing where `names`
    has nothing (it never had a gradient)."""
    wanted = {f"model/{name}": spec(tensor) for name, tensor in model.state_dict().items()}
    for optimizer in optimizers:
        keys = KEYS[type(optimizer).__name__]
        for prefix, parameter in owned(model, optimizer).items():
            if any(prefix + key in names for key in keys):
                wanted |= {prefix + key: Spec((), "float32") if key == "step" else spec(parameter) for key in keys}
    return wanted


def restore(model: nn.Module, optimizers: Sequence[Optimizer], found: Mapping[str, Tensor]) -> None:
    """`found` as `expected` wants it."""
    model.load_state_dict({name: found[f"model/{name}"] for name in model.state_dict()})
    for optimizer in optimizers:
        keys, state = KEYS[type(optimizer).__name__], {}
        for i, prefix in enumerate(owned(model, optimizer)):
            if prefix + keys[0] in found:
                state[i] = {key: found[prefix + key] for key in keys}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def owned(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """The optimizer's parameters in its own order, each under the beginning of its state's names."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {f"{type(optimizer).__name__}/{names[id(parameter)]}/": parameter for parameter in every}


def random_states() -> dict[str, Tensor]:
    """This process's generators, as bytes."""
    name, numbers, *rest = np.random.get_state(legacy=True)  # noqa: NPY002, libraries draw from it
    states = {
        "python": as_bytes(random.getstate()),
        "numpy": as_bytes([name, np.asarray(numbers).tolist(), *rest]),
        "torch": torch.get_rng_state(),
    }
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_states(states: Mapping[str, Tensor]) -> None:
    version, numbers, gauss = from_bytes(states["python"])
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(from_bytes(states["numpy"])))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def draw_anew(seed: int, step: int, rank: int) -> None:
    """Random states for a process that the checkpoint knows nothing of."""
    set_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def as_bytes(state: object) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def from_bytes(tensor: Tensor) -> list:
    return json.loads(bytes(tensor.tolist()))
