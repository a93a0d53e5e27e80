"""A GLM-4V-9B folder as released: its sizes, its names for our parameters; any folder's tensors, one at a time."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tefusion.choices import brief, in_short, listed
from tefusion.encoders.config import VisionConfig
from tefusion.json_files import read_object
from tefusion.tensor_files import check_names

PREFIX = "transformer.vision."
LARGEST = {"depth": 1 << 10}  # of our sizes; the others end at 2**20, far above any tower's
SMALL = 1 << 28  # bytes of weights
SIZES = {  # our size -> its place in config.json
    "image_size": "vision_config.image_size",
    "patch_size": "vision_config.patch_size",
    "width": "vision_config.hidden_size",
    "depth": "vision_config.num_hidden_layers",
    "heads": "vision_config.num_heads",
    "mlp": "vision_config.intermediate_size",
    "embed_dim": "hidden_size",
    "glu": "ffn_hidden_size",
}
SCALE, EPS = "vision_config.scaling_factor", "vision_config.layer_norm_eps"
FIXED = {"vision_config.in_channels": 3, "vision_config.hidden_act": "gelu"}
NAMES = {  # our module or parameter -> the released one
    "tower.patchify.proj": "patch_embedding.proj",
    "tower.patchify.cls": "patch_embedding.cls_embedding",
    "tower.patchify.position": "patch_embedding.position_embedding.weight",
    "attention.qkv": "attention.query_key_value",
    "attention.out": "attention.dense",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "projector.merge.proj": "conv",
    "projector.glu.proj": "linear_proj.linear_proj",
    "projector.glu.norm": "linear_proj.norm1",
    "projector.glu.gate": "linear_proj.gate_proj",
    "projector.glu.up": "linear_proj.dense_h_to_4h",
    "projector.glu.down": "linear_proj.dense_4h_to_h",
}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_config(folder: Path, given: Mapping[str, Any] = MappingProxyType({})) -> VisionConfig:
    """The released sizes, at the image size for which positions are stored. `given` are fields that another release of
    the tower leaves out. Raises ValueError on what does not fit."""
    file = folder / "config.json"
    config = read_object(file)
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        raise ValueError(f"{file} has no vision_config: not a GLM-4V-9B folder")
    config |= {f"vision_config.{name}": value for name, value in vision.items()} | dict(given)
    sizes: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in SIZES.items()}
    wrong = [n for ours, n in SIZES.items() if not is_size(sizes[ours], LARGEST.get(ours, 1 << 20))]
    wrong += [name for name in (SCALE, EPS) if type(config.get(name)) not in (float, int)]
    wrong += [name for name in (SCALE, EPS) if name not in wrong and not 0 < config[name] < 1e6]
    wrong += [name for name, value in FIXED.items() if config.get(name, value) != value]
    if wrong:
        said = ", ".join(f"{name} = {brief(config.get(name))}" for name in wrong)
        raise ValueError(f"{file} does not describe GLM-4V-9B's tower: {said}")
    try:
        return VisionConfig(**sizes, scale=float(config[SCALE]), eps=float(config[EPS]))
    except ValueError as error:
        raise ValueError(f"{file} does not describe GLM-4V-9B's tower: {error}") from None


def named(key: str) -> str:
    """A tensor's name as an error quotes it: a stranger's may hold line breaks, or a megabyte."""
    return key if key.isprintable() and len(key) <= 200 else brief(key)


def is_size(value: object, largest: int) -> bool:
    return type(value) is int and 0 < value <= largest


def released_name(name: str, prefix: str = PREFIX) -> str:
    """Our parameter's name -> the released tensor's, prefix included."""
    if name in NAMES:
        return prefix + NAMES[name]
    module, _, leaf = name.rpartition(".")
    if module.startswith("tower.blocks."):
        layer, _, module = module.removeprefix("tower.blocks.").partition(".")
        return f"{prefix}transformer.layers.{layer}.{NAMES[module]}.{leaf}"
    return f"{prefix}{NAMES[module]}.{leaf}"


def released_shape(name: str, parameter: Tensor, released: VisionConfig) -> tuple[int, ...]:
    """Convolutions have kernels where we have linear maps, and positions are for the released image size."""
    p, (h, w) = released.patch_size, released.grid
    differ = {
        "tower.patchify.proj.weight": (released.width, 3, p, p),
        "projector.merge.proj.weight": (released.embed_dim, released.width, 2, 2),
        "tower.patchify.position": (1 + h * w, released.width),
    }
    return differ.get(name, tuple(parameter.shape))


class Checkpoint:
    """The tensors of a folder's safetensors whose names begin with `prefix`. `title` says in errors whose they are.

    What is wrong is collected in `problems` until `complain`.
    """

    def __init__(self, folder: Path, prefix: str = PREFIX, title: str = "the GLM-4V-9B checkpoint"):
        self.folder, self.prefix, self.title = folder, prefix, title
        self.problems: list[str] = []
        self.places: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.unread: set[str] = set()
        for shard in self.shards():
            self.scan(shard)

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest that holds every stored one."""
        stored = {DTYPES[name] for name in self.dtypes.values() if name in DTYPES}
        return reduce(torch.promote_types, sorted(stored, key=str)) if stored else torch.float32

    def shards(self) -> list[Path]:
        """The files that hold these tensors, as the index says; without an index the only file."""
        index = self.folder / "model.safetensors.index.json"
        if not index.exists():
            return [self.folder / "model.safetensors"]
        placed = read_object(index).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
            raise ValueError(f"{index} has no weight_map from tensors to files")
        shards = sorted({s for key, s in placed.items() if key.startswith(self.prefix)})
        for shard in shards:
            if not shard.endswith(".safetensors") or {"/", "\\", "\0"} & {*shard}:
                raise ValueError(f"{index}: {brief(shard)} is not the name of a safetensors file in the folder")
        return [self.folder / shard for shard in shards]

    def scan(self, shard: Path) -> None:
        if not shard.is_file():
            self.problems.append(f"file {shard.name} is absent")
            return
        try:
            with safe_open(shard, "pt") as file:
                keys = [key for key in file.keys() if key.startswith(self.prefix)]  # noqa: SIM118 (not a dict)
                dtypes = {key: file.get_slice(key).get_dtype() for key in keys}
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
            with shard.open("rb") as raw:
                check_names(raw)
        except (SafetensorError, OSError, ValueError) as error:
            self.problems.append(f"file {shard.name} is truncated or no safetensors file ({in_short(error)})")
            return
        for key in sorted(dtypes.keys() & self.places.keys()):
            self.problems.append(f"{named(key)} is both in {self.places[key].name} and in {shard.name}")
        self.places |= dict.fromkeys(dtypes, shard)
        self.dtypes |= dtypes
        self.shapes |= shapes
        self.unread |= dtypes.keys()

    def check_room(self, config: VisionConfig) -> None:
        """Raises ValueError where the sizes promise a large model and the files are too small for it, before memory is
        taken for one. Of a small one every missing tensor is named instead."""
        layer = 4 * config.width**2 + 2 * config.width * config.mlp
        rest = 3 * config.embed_dim * config.glu + config.embed_dim**2
        needed = 2 * (config.depth * layer + rest)  # nothing is stored in less than two bytes a number
        stored = sum(shard.stat().st_size for shard in {*self.places.values()})
        if needed > max(stored, SMALL):
            said = f"config.json promises at least {needed:,} bytes of weights, the files hold {stored:,}"
            raise ValueError(f"{self.title} {self.folder} does not fit: {said}")

    def fits(self, key: str, shape: tuple[int, ...]) -> bool:
        """Whether the files promise floating-point numbers of this shape; a problem where they do not."""
        self.unread.discard(key)
        if key not in self.places:
            self.problems.append(f"{key} is missing")
        elif self.dtypes[key] not in DTYPES:
            self.problems.append(f"{key} is stored as {self.dtypes[key]}, not as floating-point numbers")
        elif self.shapes[key] != shape:
            self.problems.append(f"{key} is {self.shapes[key]} instead of {shape}")
        else:
            return True
        return False

    def tensor(self, key: str) -> Tensor | None:
        """A view of the file, or None and a problem where a number is not finite.

        The file is opened for each tensor: the pages of a mapped file count as memory until it is closed.
        """
        with safe_open(self.places[key], "pt") as file:
            tensor = file.get_tensor(key)
        if all(torch.isfinite(end) for end in torch.aminmax(tensor)):  # makes no copy, as isfinite would
            return tensor
        self.problems.append(f"{key} is not finite")
        return None

    def read(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        """A view of the file, or None and a problem where the tensor does not fit."""
        return self.tensor(key) if self.fits(key, shape) else None

    def complain(self) -> None:
        if self.problems:
            raise ValueError(f"{self.title} {self.folder} does not fit: {listed(self.problems)}")
