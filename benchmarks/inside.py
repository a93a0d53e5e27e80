"""Whether the time of encoders with fusion inside follows their FLOPs: preset `base`, k = 4, paired with the plain one.

    python benchmarks/inside.py seconds=300 frames=4

Every round runs all methods in rotated order, as often as the seconds allow, three times at least. `time` is a method's
time over the plain encoder's of the same round, the median over rounds, with a bootstrap 95 % interval; `flops` is the
same ratio counted. One thread, timed by its CPU clock, which other jobs on the machine do not stop; they still share
its caches and its memory, which is what the interval shows. Writes results/inside.csv.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from encoder import ROOT, interval, write
from torch.utils.flop_counter import FlopCounterMode

from tefusion.machine import provenance
from tefusion.vision import create_video_encoder

K = 4
METHODS = ("none", "te_fusion", "te_interleave", "te_shift", "te_pyramid", "te_factor", "pvc", "image_grid")
LEAST = 3  # rounds
Encode = Callable[[], object]


def encoders(frames: int, device: str = "cpu") -> dict[str, Encode]:
    """On the meta device they only count: PyTorch's counter does not know a CPU's fused attention."""
    with torch.device(device):
        return built(torch.randn(1, frames, 3, 224, 224))


def built(video: torch.Tensor) -> dict[str, Encode]:
    made = {name: create_video_encoder("base", name, 1 if name == "none" else K).eval() for name in METHODS}
    return {name: lambda encoder=encoder: encoder.encode(video) for name, encoder in made.items()}


def flops(encode: Encode) -> int:
    with FlopCounterMode(display=False) as counter:
        encode()
    return counter.get_total_flops()


def rounds(encodes: dict[str, Encode], seconds: float) -> list[dict[str, float]]:
    """CPU seconds of each method in each round, once all of them are warm."""
    names, times, end = list(encodes), [], time.monotonic() + seconds
    for encode in encodes.values():
        encode()
    while len(times) < LEAST or time.monotonic() < end:
        row, turn = {}, len(times) % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.thread_time()
            encodes[name]()
            row[name] = time.thread_time() - start
        times.append(row)
    return times


def table(times: list[dict[str, float]], counted: dict[str, int], frames: int) -> list[dict[str, object]]:
    made, rows = provenance(), []
    for name in times[0]:
        ratios = [row[name] / row["none"] for row in times]
        low, high = interval(ratios)
        work = counted[name] / counted["none"]
        rows.append(
            {
                "method": name,
                "k": 1 if name == "none" else K,
                "ms": round(1e3 * statistics.median(row[name] for row in times), 1),
                "time": round(statistics.median(ratios), 3),
                "low": round(low, 3),
                "high": round(high, 3),
                "flops": round(work, 3),
                "time_over_flops": round(statistics.median(ratios) / work, 3),
                "frames": frames,
                "rounds": len(times),
                "threads": 1,
                "clock": "thread_time",
                "torch": torch.__version__,
                **{key: made[key] for key in ("machine", "commit", "date")},
            }
        )
    return rows


def parse(words: list[str]) -> dict[str, int]:
    settings = {"seconds": 300, "frames": K}
    for word in words:
        name, _, value = word.partition("=")
        if name not in settings or not value.isdecimal() or int(value) < 1:
            raise SystemExit(f"{word!r} is none of {', '.join(f'{n}=<number>' for n in settings)}")
        settings[name] = int(value)
    if settings["frames"] % K:
        raise SystemExit(f"frames must be a multiple of {K}, got {settings['frames']}")
    return settings


@torch.inference_mode()
def main() -> None:
    settings = parse(sys.argv[1:])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    encodes = encoders(settings["frames"])
    counted = {name: flops(encode) for name, encode in encoders(settings["frames"], "meta").items()}
    rows = table(rounds(encodes, settings["seconds"]), counted, settings["frames"])
    write(rows, ROOT / "results" / "inside.csv")
    for row in rows:
        spread = f"{row['low']} to {row['high']}"
        print(f"{row['method']:14} time {row['time']} ({spread}), FLOPs {row['flops']}")


if __name__ == "__main__":
    main()
