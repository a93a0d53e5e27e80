"""Memory of worker processes that read the same clips again and again: what each pass leaves behind.

    python benchmarks/memory.py clips=200 passes=50 workers=4

Every way of reading has its own fresh processes, and a clip is read by one of them in each pass. Memory is what is
resident, summed over the workers, after the first pass and at the end; a pass of its own before the first one loads
the libraries. Writes results/memory.json and fails where it grew by 5 % or more.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import av
import numpy as np

from tefusion.frame_cache import FrameCache
from tefusion.machine import provenance
from tefusion.video import Request, decode

ROOT = Path(__file__).parents[1]
FRAMES, HEIGHT, WIDTH = 48, 120, 160  # of a clip
SAMPLED, SIZE = 16, 64  # of a read
GROWTH = 5.0  # percent
WAYS = ("pyav", "decord", "cached")


def write_clip(path: Path, seed: int) -> Path:
    """Coarse noise that moves by a pixel a frame: something to predict, and no two clips alike."""
    cells = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    still = cells.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"preset": "veryfast", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.gop_size = 12
        for index in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.roll(still, index, axis=1), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def reader(way: str, folder: Path) -> Callable[[Path], object]:
    if way == "cached":
        cache, request = FrameCache(folder / "cache", 1 << 30), Request(SAMPLED, size=SIZE)
        return lambda path: cache.decode(path, request)
    request = Request(SAMPLED, size=SIZE, backend=way)
    return lambda path: decode(path, request)


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def work(way: str, folder: Path, clips: list[Path], passes: int, results: SimpleQueue) -> None:
    """Sends its memory after each pass."""
    read, sizes = reader(way, folder), []
    read(clips[0])
    for _ in range(passes):
        for clip in clips:
            read(clip)
        sizes.append(resident())
    results.put(sizes)


def measure(way: str, folder: Path, clips: list[Path], passes: int, workers: int) -> dict[str, object]:
    context = multiprocessing.get_context("spawn")  # a fork would count the parent's memory as its own
    results, start = context.SimpleQueue(), time.perf_counter()
    shares = [clips[i::workers] for i in range(workers)]
    processes = [context.Process(target=work, args=(way, folder, share, passes, results)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"a worker of {way} ended with {[process.exitcode for process in processes]}")
    sizes = [results.get() for _ in processes]
    first, last, most = (sum(worker[i] for worker in sizes) for i in (0, -1, passes // 2))
    return {
        "way": way,
        "first_mb": round(first / 2**20, 1),
        "half_way_mb": round(most / 2**20, 1),
        "last_mb": round(last / 2**20, 1),
        "growth_percent": round(100 * (last / first - 1), 2),
        "bytes_a_read": round((last - first) / (len(clips) * max(1, passes - 1))),
        "seconds": round(time.perf_counter() - start, 1),
    }


def write(path: Path, settings: dict[str, int], rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(settings | {"rows": rows} | provenance(), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def parse(words: list[str]) -> dict[str, int]:
    settings = {"clips": 200, "passes": 50, "workers": 4}
    for word in words:
        name, _, value = word.partition("=")
        if name not in settings or not value.isdecimal() or int(value) < 1:
            raise SystemExit(f"{word!r} is none of {', '.join(f'{n}=<number>' for n in settings)}")
        settings[name] = int(value)
    return settings


def main(words: list[str], out: Path) -> None:
    settings = parse(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = [write_clip(folder / f"{seed}.mp4", seed) for seed in range(settings["clips"])]
        rows = [measure(way, folder, clips, settings["passes"], settings["workers"]) for way in WAYS]
    write(out, settings, rows)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if any(row["growth_percent"] >= GROWTH for row in rows):
        raise SystemExit(f"memory grew by {GROWTH:g} % or more")


if __name__ == "__main__":
    main(sys.argv[1:], ROOT / "results" / "memory.json")
