"""Towers whose layers see (frames, tokens, width). Inside, a group is a row: (groups, k, tokens, width).

What acts on single tokens does not notice the axis more; each attention merges it into its sequence and splits it off
again. So k travels in the shape, where a checkpoint that computes a layer again finds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from tefusion.integrations.transformers.calls import Calls, replace_attribute


@dataclass(frozen=True)
class FrameTower:
    """`enters` is the module whose input (or, with `leaves_before`, output) becomes groups; `layers` and `attention`
    name the attention modules. Alternatives for other versions of the library stand after a |."""

    enters: str
    layers: str
    attention: str
    leaves_before: str | None = None

    def install(self, tower: nn.Module, calls: Calls) -> list[Callable[[], None]]:
        entrance = tower.get_submodule(self.enters)
        if self.leaves_before is None:
            enter = entrance.register_forward_pre_hook(Enter(calls), with_kwargs=True)
            leave = entrance.register_forward_hook(leave_encoder)
        else:
            enter = entrance.register_forward_hook(EnterAfter(calls))
            leave = tower.get_submodule(self.leaves_before).register_forward_pre_hook(leave_before)
        undo = [hook.remove for hook in (enter, leave, tower.register_forward_hook(leave_tower))]
        for layer in submodule(tower, self.layers).children():
            attention = layer.get_submodule(self.attention)
            undo.append(replace_attribute(attention, "forward", MergedFrames(attention.forward)))
        return undo


def submodule(tower: nn.Module, names: str) -> nn.Module:
    for name in names.split("|"):
        try:
            return tower.get_submodule(name)
        except AttributeError:
            continue
    raise ValueError(f"{type(tower).__name__} has no {names.replace('|', ' or ')}: no version that is known")


def grouped(x: Tensor, k: int) -> Tensor:
    if k == 1:
        return x
    if x.shape[0] % k:
        raise ValueError(f"{x.shape[0]} frames do not divide into groups of k = {k}")
    return rearrange(x, "(g k) n d -> g k n d", k=k)


@dataclass(frozen=True)
class Enter:
    calls: Calls

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            return (grouped(args[0], self.calls.frames), *args[1:]), kwargs
        name = "inputs_embeds" if "inputs_embeds" in kwargs else "hidden_states"
        return args, {**kwargs, name: grouped(kwargs[name], self.calls.frames)}


@dataclass(frozen=True)
class EnterAfter:
    calls: Calls

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return grouped(output, self.calls.frames)


def frame_by_frame(x: Tensor | None) -> Tensor | None:
    """A layer's states that nobody reads may be None."""
    return x.flatten(0, 1) if x is not None and x.ndim == 4 else x


def leave_before(module: nn.Module, args: tuple) -> tuple:
    return (frame_by_frame(args[0]), *args[1:])


def leave_encoder(module: nn.Module, args: tuple, output: Any) -> Any:
    """The encoder's last hidden state, and those of its layers where they were asked for."""
    if isinstance(output, Mapping):
        for name in ("last_hidden_state", "hidden_states"):
            if output.get(name) is not None:
                output[name] = each(output[name])  # type: ignore[index]  # a ModelOutput takes its fields by name
        return output
    return (frame_by_frame(output[0]), *output[1:]) if isinstance(output, tuple) else frame_by_frame(output)


def leave_tower(module: nn.Module, args: tuple, output: Any) -> Any:
    if isinstance(output, Mapping):
        if output.get("hidden_states") is not None:
            output["hidden_states"] = each(output["hidden_states"])  # type: ignore[index]
        return output
    return output


def each(states: Any) -> Any:
    return tuple(map(frame_by_frame, states)) if isinstance(states, tuple) else frame_by_frame(states)


@dataclass(frozen=True)
class MergedFrames:
    """An attention's forward over all tokens of a group, where there are groups."""

    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        if x.ndim == 3:
            return self.forward(*args, **kwargs)
        k, tokens = x.shape[1:3]
        args = tuple(merged_mask(mask, k) for mask in args[1:])  # its mask is all that an attention takes by place
        kwargs = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = merged_mask(kwargs["attention_mask"], k)
        if kwargs.get("position_embeddings") is not None:
            cos, sin = kwargs["position_embeddings"]
            kwargs["position_embeddings"] = repeated(cos, 1.0, tokens, k), repeated(sin, 0.0, tokens, k)
        output = self.forward(x.flatten(1, 2), *args, **kwargs)
        if isinstance(output, tuple):
            return output[0].unflatten(1, (k, tokens)), *output[1:]
        return output.unflatten(1, (k, tokens))


def merged_mask(mask: Tensor | None, k: int) -> Tensor | None:
    """Which keys of a group may be seen: a tower's mask only hides padding, the same from every query."""
    if mask is None:
        return None
    if mask.ndim == 2:
        return rearrange(mask, "(g k) n -> g (k n)", k=k)
    return rearrange(mask[:, :, :1], "(g k) h q n -> g h q (k n)", k=k)


def repeated(angles: Tensor, identity: float, tokens: int, k: int) -> Tensor:
    """One frame's cosines or sines for k frames; the prefix tokens, which a frame's lack, are not turned."""
    prefix = angles.new_full((*angles.shape[:-2], tokens - angles.shape[-2], angles.shape[-1]), identity)
    return repeat(torch.cat([prefix, angles], -2), "... n d -> ... (k n) d", k=k)
