"""The files of one checkpoint: safetensors shards and a manifest of what each holds; verified as a whole."""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tefusion.files import write_flushed
from tefusion.launch import rank, world
from tefusion.machine import PACKAGES, installed
from tefusion.tensor_files import check_names

FORMAT = 1  # raise it when older checkpoints cannot be read any more


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names the file and what is wrong with it."""


class Spec(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


class Checkpoint(NamedTuple):
    """`own` is what this process gave when the checkpoint was written; empty where the processes were not as many."""

    shared: dict[str, Tensor]
    own: dict[str, Tensor]
    state: dict[str, Any]


Expected = Callable[[Collection[str]], Mapping[str, Spec]]  # the names that were found -> what has to be there


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def spec(tensor: Tensor) -> Spec:
    return Spec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def shard_name(i: int, n: int) -> str:
    return f"shard-{i:05d}-of-{n:05d}.safetensors"


def shares(tensors: Mapping[str, Tensor], n: int) -> list[dict[str, Tensor]]:
    """`n` parts of about the same size, the same in every process."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(n)]
    bytes_of = [0] * n
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        i = bytes_of.index(min(bytes_of))
        parts[i][name] = tensors[name]
        bytes_of[i] += tensors[name].nbytes
    return parts


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns what the manifest says of it. A full disk leaves no half-written folder."""
    data = packed(tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_flushed(path, data)
    except OSError:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise
    return {
        "bytes": len(data),
        "blake2b": digest(data),
        "tensors": {name: spec(tensor)._asdict() for name, tensor in tensors.items()},
    }


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def write_manifest(folder: Path, settings: dict, state: dict, records: list[dict]) -> None:
    manifest = {
        "format": FORMAT,
        "settings": settings,
        "state": state,
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "shards": {shard_name(i, len(records)): record for i, record in enumerate(records)},
    }
    text = json.dumps(manifest, sort_keys=True)
    write_flushed(folder / "manifest.json", json.dumps({"blake2b": digest(text.encode())} | manifest).encode())


def attempt(folder: Path, settings: dict, expected: Expected) -> tuple[Checkpoint | None, str]:
    """The checkpoint, or why it is none."""
    try:
        return read(folder, settings, expected), ""
    except CheckpointError as error:
        return None, str(error)


def read(folder: Path, settings: dict, expected: Expected) -> Checkpoint:
    """Verifies files, tensors and settings as a whole. Raises CheckpointError."""
    manifest = read_manifest(folder / "manifest.json")
    if manifest["settings"] != settings:
        raise CheckpointError(f"{folder} was made with other settings")
    found: dict[str, Tensor] = {}
    n = len(manifest["shards"])
    for name in (shard_name(i, n) for i in range(n)):
        if name not in manifest["shards"]:
            raise CheckpointError(f"{folder / 'manifest.json'} does not say what {name} holds")
        shard = read_shard(folder / name, manifest["shards"][name])
        if twice := found.keys() & shard.keys():
            raise CheckpointError(f"{folder / name} holds {min(twice)} a second time")
        found |= shard
    shared = {name: found[name] for name in found if not name.startswith("process/")}
    check(folder, shared, expected(shared.keys()))
    mine = f"process/{rank()}/"
    own = {name.removeprefix(mine): found[name] for name in found if name.startswith(mine)}
    return Checkpoint(shared, own if n == world() else {}, manifest["state"])


def read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
        claimed = manifest.pop("blake2b")
        if digest(json.dumps(manifest, sort_keys=True).encode()) != claimed:
            raise CheckpointError(f"{path} is damaged: its hash is another")
        if manifest["format"] != FORMAT or {"settings", "state", "shards"} - manifest.keys():
            raise CheckpointError(f"{path} is of another format than {FORMAT}")
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from None
    return manifest


def read_shard(path: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    data = read_file(path, record)
    try:
        tensors = load(data)
        check_names(BytesIO(data))
        specs = {name: Spec(tuple(said["shape"]), said["dtype"]) for name, said in record["tensors"].items()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no tensors: {error!r}") from None
    check(path, tensors, specs)
    return tensors


def read_file(path: Path, record: Mapping[str, Any]) -> bytes:
    """Raises CheckpointError where it is not byte for byte what was written."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) != record["bytes"]:
        raise CheckpointError(f"{path} has {len(data)} bytes, not the {record['bytes']} that were written")
    if digest(data) != record["blake2b"]:
        raise CheckpointError(f"{path} is damaged: its hash is another")
    return data


def check(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Spec]) -> None:
    if missing := expected.keys() - tensors.keys():
        raise CheckpointError(f"{path} lacks {min(missing)}")
    if extra := tensors.keys() - expected.keys():
        raise CheckpointError(f"{path} holds {min(extra)}, which belongs to nothing")
    for name, tensor in tensors.items():
        if spec(tensor) != expected[name]:
            wanted, got = (f"{s.dtype} {list(s.shape)}" for s in (expected[name], spec(tensor)))
            raise CheckpointError(f"{path}: {name} is {got}, not {wanted}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} is not finite")
