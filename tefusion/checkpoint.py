"""Checkpoints on disk: safetensors and JSON only, each whole and verified or as good as not there.

A checkpoint is a folder, step-00000400: a shard for each process that wrote it, and manifest.json with the hash and the
contents of every shard. It is read back before `latest` names it; what lies beyond `latest` never counted.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tefusion.files import flush_folder, replace_file
from tefusion.launch import gather, is_first, rank, wait_for_first, world
from tefusion.shards import (
    Checkpoint,
    CheckpointError,
    Expected,
    attempt,
    packed,
    read_file,
    shard_name,
    shares,
    write_manifest,
    write_shard,
)

log = logging.getLogger(__name__)
KEPT = 2


@dataclass
class Checkpoints:
    """The checkpoints of one run, which `settings` tell from any other; `every` is in steps, 0 for the end alone.

    `resumed` counts how often the run was taken up, this time included.
    """

    folder: Path
    every: int
    settings: dict[str, Any]
    resumed: int = field(default=0, init=False)

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def save(self, step: int, shared: dict[str, Tensor], own: dict[str, Tensor], state: dict[str, Any]) -> None:
        """All processes call it: `shared` is the same in all of them and split, `own` each one's own.

        Raises FloatingPointError on a tensor that is not finite, CheckpointError where the disk gives something else
        back; `latest` and what it names stay as they were.
        """
        name, shard = f"step-{step:08d}", shard_name(rank(), world())
        mine = shares(shared, world())[rank()] | {f"process/{rank()}/{key}": own[key] for key in own}
        for key, tensor in mine.items():
            if not tensor.isfinite().all():
                raise FloatingPointError(f"{key} is not finite after step {step}")
        partial = self.folder / f".{name}.partial"
        records = gather([write_shard(partial / shard, mine)])
        if is_first():
            write_manifest(partial, self.settings, state, records)
            self._put(partial, name)
        wait_for_first()
        read_file(self.folder / name / shard, records[rank()])
        gather([])  # everybody found its own as it was written
        if is_first():
            self._point(name)
            self._forget(name)
        wait_for_first()

    def load(self, expected: Expected) -> Checkpoint | None:
        """The newest that is good as a whole, or None where there is none; a damaged one is warned of and passed over.

        All processes take the same one. Raises CheckpointError where none of those that are there is good.
        """
        names, resumed = gather([self._candidates()])[0]
        reasons: list[str] = []
        for name in names:
            if reasons and is_first():
                log.warning("%s; going on from %s", reasons[-1], name)
            found, reason = attempt(self.folder / name, self.settings, expected)
            said = [reason for reason in gather([reason]) if reason]
            if found and not said:
                self.resumed = resumed + 1
                if is_first():
                    self._point(name)
                return found
            reasons.append(said[0])
        if reasons:
            raise CheckpointError(f"no checkpoint can be loaded, remove {self.folder} to start anew: {reasons[0]}")
        return None

    def _candidates(self) -> tuple[list[str], int]:
        """Newest first, and how often the run was taken up before. Clears what dead processes left."""
        if not is_first() or not self.folder.exists():
            return [], 0
        for leftover in self.folder.glob(".*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        names = sorted((path.name for path in self.folder.glob("step-*")), reverse=True)
        try:
            latest = json.loads((self.folder / "latest").read_bytes())
            name, resumed = latest["checkpoint"], int(latest["resumed"])
            if not re.fullmatch(r"step-\d{8,}", name):
                raise ValueError(name)
        except (OSError, ValueError, KeyError, TypeError):
            return names, 0
        return [name, *(other for other in names if other < name)], resumed

    def _put(self, partial: Path, name: str) -> None:
        flush_folder(partial)
        if (self.folder / name).exists():  # one that was damaged, or that `latest` never came to name
            discard(self.folder / name)
        partial.rename(self.folder / name)
        flush_folder(self.folder)

    def _point(self, name: str) -> None:
        replace_file(self.folder / "latest", json.dumps({"checkpoint": name, "resumed": self.resumed}).encode())

    def _forget(self, name: str) -> None:
        """All but `name` and the newest before it."""
        names = sorted((path.name for path in self.folder.glob("step-*")), reverse=True)
        kept = [other for other in names if other <= name][:KEPT]
        for other in set(names) - set(kept):
            discard(self.folder / other)


def save_whole(state: Mapping[str, Tensor], path: Path) -> None:
    """One file of weights. Tied ones are written twice: a file stays readable name by name."""
    replace_file(path, packed(state))


def clear(folder: Path) -> None:
    """Removes all checkpoints of a run that needs none any more, those included that a crash left half removed."""
    shutil.rmtree(hidden(folder), ignore_errors=True)
    if folder.exists():
        discard(folder)


def discard(folder: Path) -> None:
    """Renamed first: half a checkpoint never stands under its name."""
    shutil.rmtree(hidden(folder), ignore_errors=True)
    shutil.rmtree(folder.rename(hidden(folder)))


def hidden(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.discarded")
