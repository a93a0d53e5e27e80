"""Frames of a film: a two-hour video, made by copying one encoded minute, is read exactly, soon and in little memory.

    python benchmarks/long_video.py minutes=120 frames=32

The definition is every frame decoded in order. The time and the memory are those of a process of its own that reads the
file for the first time, with the libraries that it has loaded. Writes results/long_video.json and fails beyond the
bounds.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from fractions import Fraction
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import av
import numpy as np

from tefusion.files import replace_file
from tefusion.machine import provenance
from tefusion.video import Decoded, Request, decode

ROOT = Path(__file__).parents[1]
RATE, HEIGHT, WIDTH = 24, 270, 480
SECONDS, MEGABYTES = 20.0, 500.0  # that a process may take to read


def write_minute(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Coarse noise that moves by a pixel a frame, across and down in turn: no two frames of the minute are alike."""
    cells = np.random.default_rng(0).integers(0, 256, (-(-height // 10), -(-width // 10), 3), np.uint8)
    still = cells.repeat(10, axis=0).repeat(10, axis=1)[:height, :width]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(60 * RATE):
            moved = np.roll(still, (index // width, index), axis=(0, 1))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(moved), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def repeat_minute(minute: Path, path: Path, times: int) -> Path:
    """The minute's packets, copied `times` over: nothing is decoded."""
    with av.open(str(path), "w") as file:
        stream = None
        for turn in range(times):
            with av.open(str(minute)) as source:
                taken = source.streams.video[0]
                stream = stream or file.add_stream_from_template(taken)
                length = round(60 / taken.time_base)
                for packet in source.demux(taken):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + turn * length, packet.dts + turn * length
                        packet.stream = stream
                        file.mux(packet)
    return path


def in_order(path: Path, wanted: tuple[int, ...]) -> np.ndarray:
    """The frames at these places among all that PyAV decodes, one after another."""
    kept = {}
    with av.open(str(path)) as file:
        file.streams.video[0].thread_type = "AUTO"
        for place, frame in enumerate(file.decode(video=0)):
            if place in wanted:
                kept[place] = frame.to_ndarray(format="rgb24")
    return np.stack([kept[place] for place in wanted])


def read(path: Path, frames: int, results: SimpleQueue) -> None:
    before, start = resident("VmRSS"), time.perf_counter()
    decoded = decode(path, Request(frames))
    seconds = time.perf_counter() - start
    results.put((decoded, seconds, before, resident("VmHWM")))


def resident(name: str) -> float:
    """MiB that this process holds now (VmRSS), or held at most (VmHWM): getrusage would count its parent's as well."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def read_apart(path: Path, frames: int) -> tuple[Decoded, float, float, float]:
    """What a fresh process reads, its seconds, and the MiB that it held before and at most."""
    context = multiprocessing.get_context("spawn")  # a fork would count the parent's memory as its own
    results = context.SimpleQueue()
    process = context.Process(target=read, args=(path, frames, results))
    process.start()
    found = results.get()
    process.join()
    return found


def measure(minutes: int, frames: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        path = repeat_minute(write_minute(Path(name) / "minute.mp4"), Path(name) / "long.mp4", minutes)
        decoded, seconds, before, most = read_apart(path, frames)
        return {
            "minutes": minutes,
            "frames_in_the_file": decoded.total,
            "height": HEIGHT,
            "width": WIDTH,
            "file_mb": round(path.stat().st_size / 2**20, 1),
            "frames": frames,
            "backend": decoded.backend,
            "exact": bool(np.array_equal(decoded.frames, in_order(path, decoded.indices))),
            "seconds": round(seconds, 2),
            "libraries_mb": round(before, 1),
            "peak_mb": round(most, 1),
        }


def parse(words: list[str]) -> dict[str, int]:
    settings = {"minutes": 120, "frames": 32}
    for word in words:
        name, _, value = word.partition("=")
        if name not in settings or not value.isdecimal() or int(value) < 1:
            raise SystemExit(f"{word!r} is none of {', '.join(f'{n}=<number>' for n in settings)}")
        settings[name] = int(value)
    return settings


def main(words: list[str], out: Path) -> None:
    found = measure(**parse(words))
    replace_file(out, (json.dumps(found | provenance(), indent=2) + "\n").encode())
    print("  ".join(f"{name} {value}" for name, value in found.items()))
    if not found["exact"]:
        raise SystemExit("the frames are not those that PyAV shows in order")
    if found["seconds"] > SECONDS or found["peak_mb"] > MEGABYTES:
        raise SystemExit(f"more than {SECONDS:g} seconds or {MEGABYTES:g} MB")


if __name__ == "__main__":
    main(sys.argv[1:], ROOT / "results" / "long_video.json")
