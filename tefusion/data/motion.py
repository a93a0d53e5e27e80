"""The generated motion set: real mp4 files in MotionBench's layout, with exact truth, in three disjoint splits.

write_motion("data/motion", MotionSettings()) -> train/ dev/ test/, each read by read_motionbench and load_truth
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np

from tefusion.choices import brief
from tefusion.data.motion_augment import augment
from tefusion.data.motion_files import SPLITS, VERSION, MotionSettings, write_clips, write_split
from tefusion.data.motion_scene import (
    COLOURS,
    COUNTS,
    DIRECTIONS,
    NUMBERS,
    OPPOSITE,
    SHAPES,
    SPINS,
    STEMS,
    Array,
    object_name,
)
from tefusion.data.motion_still import STILL_STEMS, still_questions
from tefusion.data.motion_truth import Truth, load_truth, motion_targets, patch_targets
from tefusion.data.motionbench import VIDEO_FOLDERS
from tefusion.json_files import read_object
from tefusion.lock import locked, patiently
from tefusion.orphan import end_with_parent

__all__ = [
    "MotionSettings",
    "Truth",
    "augment",
    "load_truth",
    "motion_targets",
    "patch_targets",
    "still_questions",
    "vocabulary",
    "write_motion",
]

CHUNK = 64  # clips a process writes at a time
CHUNKS = 16  # a process takes seconds to start: fewer chunks than these do not pay for one
Progress = Callable[[int, int], None]


def write_motion(folder: str | Path, settings: MotionSettings, progress: Progress | None = None) -> Path:
    """Writes the set and returns its folder; one with the same settings is left alone.

    `progress` is called with clips done and clips in all. More than a few chunks are written by a pool of spawned
    processes, so a script needs its `if __name__ == "__main__"`. Raises ValueError if the folder holds anything else.
    """
    folder = Path(folder)
    if is_written(folder, settings):
        return folder
    with locked(folder.with_name(f".{folder.name}.lock"), patiently):
        if is_written(folder, settings):  # by the one that was waited for
            return folder
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        try:
            write_splits(partial, settings, progress)
            (partial / "settings.json").write_text(json.dumps(identity(settings), indent=2), encoding="utf-8")
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def identity(settings: MotionSettings) -> dict[str, object]:
    return {"version": VERSION, **asdict(settings)}


def is_written(folder: Path, settings: MotionSettings) -> bool:
    """Whether the finished set is there; a folder that holds something else is an error."""
    path = folder / "settings.json"
    if path.is_file():
        found = read_object(path)
        wanted = identity(settings)
        names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        if names:
            changes = ", ".join(f"{name}={brief(found.get(name))} instead of {wanted.get(name)}" for name in names)
            raise ValueError(f"{folder} holds a motion set with {changes}; take another folder or remove it")
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is no motion set; take another folder or remove it")
    return False


def write_splits(folder: Path, settings: MotionSettings, progress: Progress | None) -> None:
    sizes = {split: getattr(settings, split) for split in SPLITS}
    tasks = [(split, range(i, min(i + CHUNK, size))) for split, size in sizes.items() for i in range(0, size, CHUNK)]
    for split in SPLITS:
        (folder / split / VIDEO_FOLDERS[0]).mkdir(parents=True)
    chunks = run(folder, settings, tasks)
    done = 0
    for split, size in sizes.items():
        rows: list[str] = []
        truth: dict[str, Array] = {}
        while len(rows) < size:
            written, part = next(chunks)
            for name, values in part.items():
                whole = truth.setdefault(name, np.empty((size, *values.shape[1:]), values.dtype))
                whole[len(rows) : len(rows) + len(values)] = values
            rows += written
            done += len(written)
            if progress:
                progress(done, sum(sizes.values()))
        write_split(folder / split, rows, truth)


def run(
    folder: Path, settings: MotionSettings, tasks: list[tuple[str, range]]
) -> Iterator[tuple[list[str], dict[str, Array]]]:
    """What `write_clips` returns for every task, in order; in this process where a pool would not pay."""
    splits, indices = zip(*tasks, strict=True)
    n = len(tasks)
    workers = min(os.cpu_count() or 1, n // CHUNKS)
    if workers < 2:
        yield from map(write_clips, [folder] * n, [settings] * n, splits, indices)
        return
    # Spawned, not forked: the caller may already run threads of torch.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=end_with_parent) as pool:
        yield from pool.map(write_clips, [folder] * n, [settings] * n, splits, indices)


def vocabulary() -> list[str]:
    """Every question and every option the set and its stills can produce."""
    names = [object_name(colour + 1, shape + 1) for colour in range(len(COLOURS)) for shape in range(len(SHAPES))]
    stems = [*STEMS.values(), *STILL_STEMS.values()]
    texts = [stem.format(object=name, colour=name.split()[0]) for stem in stems for name in names]
    orders = [f"{a}, then {b}" for a, b in product(DIRECTIONS, repeat=2) if b not in (a, OPPOSITE[a])]
    words = [*DIRECTIONS, *SPINS, *COUNTS, *NUMBERS, *COLOURS, *SHAPES, *orders]
    options = [f"further {word}" for word in DIRECTIONS] + [f"the {name}" for name in names] + words
    return list(dict.fromkeys(texts + options))
