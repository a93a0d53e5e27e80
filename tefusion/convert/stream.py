"""A plan carried out: every tensor read once, written once, checked both times; a folder that is whole or not there."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch

from tefusion.choices import brief, listed
from tefusion.convert.move import Move, Slot, in_shards
from tefusion.convert.plan import Plan
from tefusion.convert.writer import Record, ShardWriter, record_of
from tefusion.encoders.released import DTYPES, named
from tefusion.files import flush_folder, replace_file
from tefusion.json_files import read_object

RECORDS = "conversion.json"  # in the result: what was read, what was written, with sizes and hashes
SHARD = 2 << 30  # bytes
Say = Callable[[str], None]


def run(plan: Plan, out: Path, say: Say, sums: Path | None = None, shard: int = SHARD) -> None:
    """Raises one ValueError that names every tensor that is missing, unexpected, of another shape or not finite; then,
    and after any other error, `out` is not there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: name a folder that is not")
    read = hashes(plan, say, sums)
    moves = fitting(plan)
    check_disk(plan, moves, out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        written = write(plan, moves, partial, say, shard)
        plan.checkpoint.complain()
        plan.beside(partial, plan.checkpoint.dtype)
        verify(partial, written, "was written")
        records = {"from": plan.name, "read": said(read), "written": said(written)}
        replace_file(partial / RECORDS, json.dumps(records, indent=1).encode())
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    flush_folder(out.parent)


def said(records: Mapping[str, Record]) -> dict[str, dict[str, object]]:
    return {name: record._asdict() for name, record in records.items()}


def hashes(plan: Plan, say: Say, sums: Path | None) -> dict[str, Record]:
    """The source's files as they are, held against what is known of them: a list in `sha256sum`'s format, or the
    records of the conversion that wrote them."""
    found: dict[str, Record] = {}
    files = sorted({*plan.checkpoint.places.values()})
    for i, path in enumerate(files, 1):
        found[path.name] = record_of(path)
        say(f"hash {i}/{len(files)} {path.name}: {found[path.name].bytes:,} bytes, {found[path.name].sha256}")
    expected = known(plan.checkpoint.folder, sums)
    for name in sorted(expected.keys() | found.keys()) if expected else ():
        if name not in expected:
            raise ValueError(f"{named(name)} is not in the list of hashes: add it, or leave the list out")
        sha256, size = expected[name]
        if name in found and (found[name].sha256 != sha256 or size not in (None, found[name].bytes)):
            raise ValueError(f"{plan.checkpoint.folder / name} is damaged: its hash is not the one on record")
    return found


def known(folder: Path, sums: Path | None) -> dict[str, tuple[str, int | None]]:
    if sums is not None:
        return read_sums(sums)
    if not (folder / RECORDS).is_file():
        return {}
    written = read_object(folder / RECORDS).get("written")
    try:
        return {name: (record["sha256"], record["bytes"]) for name, record in dict(written or {}).items()}
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{folder / RECORDS} does not say what was written: remove it") from None


def read_sums(path: Path) -> dict[str, tuple[str, int | None]]:
    """What `sha256sum *.safetensors` prints. Raises ValueError naming the line."""
    expected: dict[str, tuple[str, int | None]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        sha256, _, name = line.partition(" ")
        if len(sha256) != 64 or not {*sha256.lower()} <= {*"0123456789abcdef"} or not name[1:]:
            raise ValueError(f"{path}, line {number}: {brief(line)} is no line of sha256sum")
        expected[name[1:]] = sha256.lower(), None
    return expected


def fitting(plan: Plan) -> list[Move]:
    """The moves whose sources are all there; what is wrong with the others is among the checkpoint's problems."""
    checkpoint = plan.checkpoint
    moves = []
    for move in plan.moves:
        fit = [checkpoint.fits(*slot) for slot in move.sources]
        if not all(fit):
            continue
        if len({checkpoint.dtypes[slot.name] for slot in move.sources}) > 1:
            said = ", ".join(f"{slot.name} as {checkpoint.dtypes[slot.name]}" for slot in move.sources)
            checkpoint.problems.append(f"what becomes one tensor is stored in several precisions: {said}")
            continue
        moves.append(move)
    checkpoint.problems += [f"{named(name)} is unexpected" for name in plan.unexpected()]
    return moves


def check_disk(plan: Plan, moves: list[Move], out: Path) -> None:
    needed = sum(bytes_of(plan, move) for move in moves)
    place = next(folder for folder in [out, *out.absolute().parents] if folder.is_dir())
    if (free := shutil.disk_usage(place).free) < needed:
        raise ValueError(f"{out} needs {needed:,} bytes of disk, {free:,} are free")


def dtype_of(plan: Plan, move: Move) -> torch.dtype:
    return DTYPES[plan.checkpoint.dtypes[move.sources[0].name]]


def bytes_of(plan: Plan, move: Move) -> int:
    return sum(prod(slot.shape) for slot in move.targets) * dtype_of(plan, move).itemsize


def write(plan: Plan, moves: list[Move], folder: Path, say: Say, most: int) -> dict[str, Record]:
    """The shards and their index. Where something is wrong nothing more is written, and the rest is still read."""
    parts = in_shards(moves, [bytes_of(plan, move) for move in moves], most)
    names = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    names = names if len(parts) > 1 else ["model.safetensors"][: len(parts)]
    records: dict[str, Record] = {}
    places: dict[str, str] = {}
    for i, (name, part) in enumerate(zip(names, parts, strict=True), 1):
        part.sort(key=lambda move: -dtype_of(plan, move).itemsize)  # keeps every tensor aligned
        made = plan.made if i == len(parts) else {}
        if plan.checkpoint.problems:
            read_only(plan, part)
            continue
        if (record := write_shard(plan, part, made, folder / name)) is None:
            continue
        records[name] = record
        places |= dict.fromkeys([slot.name for move in part for slot in move.targets] + list(made), name)
        tensors = f"{len(places):,} tensors of {sum(len(move.targets) for move in moves) + len(plan.made):,}"
        say(f"write {i}/{len(parts)} {name}: {record.bytes:,} bytes, {tensors}")
    if len(parts) > 1:
        size = sum(bytes_of(plan, move) for move in moves)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        replace_file(folder / "model.safetensors.index.json", json.dumps(index, indent=1).encode())
    return records


def write_shard(plan: Plan, moves: list[Move], made: Mapping, path: Path) -> Record | None:
    """None where a tensor turned out to be wrong."""
    extra = {name: make(plan.checkpoint.dtype) for name, make in made.items()}
    slots = [(Slot(name, tuple(tensor.shape)), tensor.dtype) for name, tensor in extra.items()]  # the widest first
    slots += [(slot, dtype_of(plan, move)) for move in moves for slot in move.targets]
    with ShardWriter(path, slots) as writer:
        for tensor in extra.values():
            writer.write(tensor)
        for move in moves:
            for tensor in carried(plan, move):
                if not plan.checkpoint.problems:
                    writer.write(tensor)
        return None if plan.checkpoint.problems else writer.close()


def read_only(plan: Plan, moves: list[Move]) -> None:
    for move in moves:
        carried(plan, move)


def carried(plan: Plan, move: Move) -> list[torch.Tensor]:
    """The targets, or none and a problem."""
    read = [plan.checkpoint.tensor(slot.name) for slot in move.sources]
    sources = [tensor for tensor in read if tensor is not None]
    if len(sources) < len(read):
        return []
    try:
        return move.carry(sources)
    except ValueError as error:
        plan.checkpoint.problems.append(str(error))
        return []


def verify(folder: Path, written: Mapping[str, Record], done: str) -> None:
    """Raises ValueError where a file on the disk is not what left this process."""
    wrong = [f"{name} is not what {done}" for name, record in written.items() if record_of(folder / name) != record]
    if wrong:
        raise ValueError(f"{folder}: {listed(wrong)}: the disk may be failing")
