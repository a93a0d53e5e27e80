"""Forward of the tower `base` against timm's and transformers' ViT of the same sizes: same frames, paired in one run.

    python benchmarks/encoder.py repeats=15 frames=1 threads=1

Every round runs all three, in rotated order. A ratio is their time / our time, the median over rounds, with a bootstrap
95 % interval over rounds. One thread is timed by its CPU clock, which other jobs on the machine do not stop; several
by the wall clock. Writes results/encoder.csv.
"""

import csv
import io
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tefusion.compressors.base import run_blocks
from tefusion.encoders import PRESETS, ViT
from tefusion.files import replace_file
from tefusion.machine import provenance

ROOT = Path(__file__).parents[1]
WARMUP = 2
CLOCKS = {True: time.thread_time, False: time.perf_counter}  # by whether there is one thread
Forward = Callable[[], Tensor]


def forwards(x: Tensor) -> dict[str, Forward]:
    """The three models, as features of every token: no pooling, no head."""
    config = PRESETS["base"]
    ours = ViT(config).eval()
    theirs: Any = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0).eval()
    sizes = transformers.ViTConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )
    sizes._attn_implementation = "sdpa"
    hugging = transformers.ViTModel(sizes, add_pooling_layer=False).eval()
    return {
        "tefusion": lambda: ours.norm(run_blocks(ours.patchify(x[None]), ours.blocks))[0],
        "timm": lambda: theirs.forward_features(x),
        "transformers": lambda: hugging(x).last_hidden_state,
    }


def check(models: dict[str, Forward]) -> None:
    """The three do the same work, and ours is what its definition says."""
    flops = {}
    for name, forward in models.items():
        with FlopCounterMode(display=False) as counter:
            shape = forward().shape
        flops[name] = (*shape, counter.get_total_flops())
    if len(set(flops.values())) > 1:
        raise SystemExit(f"the models differ in output or FLOPs: {flops}")
    fast = models["tefusion"]()
    os.environ["TEFUSION_ATTENTION"] = "reference"
    slow = models["tefusion"]()
    del os.environ["TEFUSION_ATTENTION"]
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def rounds(models: dict[str, Forward], repeats: int, clock: Callable[[], float]) -> list[dict[str, float]]:
    """Milliseconds of each model in each round."""
    names, times = list(models), []
    for i in range(-WARMUP, repeats):
        row = {}
        for name in names[i % 3 :] + names[: i % 3]:
            start = clock()
            models[name]()
            row[name] = 1e3 * (clock() - start)
        if i >= 0:
            times.append(row)
    return times


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def table(times: list[dict[str, float]], frames: int, threads: int) -> list[dict[str, object]]:
    rows, made = [], provenance()
    for name in times[0]:
        ratios = [row[name] / row["tefusion"] for row in times]
        low, high = interval(ratios)
        rows.append(
            {
                "model": name,
                "ms": round(statistics.median(row[name] for row in times), 1),
                "ratio": round(statistics.median(ratios), 3),
                "low": round(low, 3),
                "high": round(high, 3),
                "frames": frames,
                "repeats": len(times),
                "threads": threads,
                "clock": CLOCKS[threads == 1].__name__,
                "torch": torch.__version__,
                "timm": timm.__version__,
                "transformers": transformers.__version__,
                **{name: made[name] for name in ("machine", "commit", "date")},
            }
        )
    return rows


def write(rows: list[dict[str, object]], path: Path) -> None:
    """What another machine measured stays, since a ratio on one says little of another."""
    before = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    rows = [row for row in before if row["machine"] != rows[0]["machine"]] + rows
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, table.getvalue().encode())


def parse(words: list[str]) -> dict[str, int]:
    settings = {"repeats": 15, "frames": 1, "threads": 1}
    for word in words:
        name, _, value = word.partition("=")
        if name not in settings or not value.isdecimal() or int(value) < 1:
            raise SystemExit(f"{word!r} is none of {', '.join(f'{n}=<number>' for n in settings)}")
        settings[name] = int(value)
    return settings


@torch.inference_mode()
def main() -> None:
    settings = parse(sys.argv[1:])
    torch.manual_seed(0)
    torch.set_num_threads(settings["threads"])
    models = forwards(torch.randn(settings["frames"], 3, 224, 224))
    check(models)
    times = rounds(models, settings["repeats"], CLOCKS[settings["threads"] == 1])
    rows = table(times, settings["frames"], settings["threads"])
    write(rows, ROOT / "results" / "encoder.csv")
    print(f"{'model':14}{'ms':>8}{'theirs/ours':>13}   95 % interval")
    for row in rows:
        print(f"{row['model']:14}{row['ms']:>8}{row['ratio']:>13}   {row['low']} to {row['high']}")


if __name__ == "__main__":
    main()
