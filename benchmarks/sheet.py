"""The results as rows of one schema: a CSV, a plot, lines for a terminal."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tefusion.machine import installed, machine, provenance

FIELDS = (
    *("sweep", "op", "direction", "backend", "k", "tokens", "dim", "heads", "groups", "dtype", "status"),
    *("median_us", "low_us", "high_us", "clock", "tflops", "ceiling_tflops", "share", "gbytes_per_s", "peak_mb"),
    *("error", "machine", "torch", "triton", "cudnn", "xformers", "commit", "date"),
)
Row = Mapping[str, object]


def origin() -> Row:
    made = provenance()
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    versions = {name: installed(name) for name in ("triton", "xformers")}
    return {"machine": machine(), "torch": torch.__version__, "cudnn": cudnn, **versions} | {
        name: made[name] for name in ("commit", "date")
    }


def write(rows: Sequence[Row], path: Path) -> None:
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows({name: rounded(value) for name, value in row.items()} for row in rows)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def plot(rows: Sequence[Row], folder: Path) -> None:
    """TFLOP/s over k, a line a backend, a panel a direction."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["sweep"] == "k" and row["status"] == "ok"]
    panels = Figure(figsize=(10, 4), layout="constrained")
    for axes, direction in zip(panels.subplots(1, 2), ("forward", "backward"), strict=True):
        for backend in dict.fromkeys(row["backend"] for row in shown):
            line = [row for row in shown if (row["backend"], row["direction"]) == (backend, direction)]
            axes.plot([row["k"] for row in line], [row["tflops"] for row in line], marker="o", label=backend)
        axes.set(title=direction, xlabel="frames a group, k", ylabel="TFLOP/s", xscale="log")
    axes.legend(fontsize="small")
    panels.savefig(folder / "kernels.svg")


def printed(row: Row) -> str:
    said = f"{row['sweep']:8}{row['direction']:10}{row['backend']:26}"
    said += "".join(f"{name}={row[name]} " for name in ("k", "tokens", "dim", "dtype") if name in row)
    if row["status"] != "ok":
        return f"{said} {row['status']}"
    rate = f"{row['tflops']:8.1f} TFLOP/s" if "tflops" in row else ""
    return f"{said} {row['median_us']:10.1f} us {rate} ({row['clock']})"


def wins(rows: Sequence[Row]) -> str:
    """Where our kernel is the fastest forward: what a row of `tefusion.kernels.backends.AUTO` has to say."""
    shapes: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row["op"] == "attention" and row["direction"] == "forward" and row["status"] == "ok":
            shape = tuple(row[name] for name in ("dim", "dtype", "k", "tokens"))
            shapes.setdefault(shape, {})[str(row["backend"])] = float(str(row["median_us"]))
    won = [shape for shape, times in shapes.items() if min(times, key=times.__getitem__) == "triton"]
    lines = [f"  dim {dim}, {dtype}, {k} x {tokens} tokens" for dim, dtype, k, tokens in sorted(won)]
    return "triton is the fastest forward at" + ("\n" + "\n".join(lines) if lines else " no shape")
