"""Group attention and LayerNorm + residual against everybody else who computes them, on a GPU.

    python benchmarks/kernels.py out=results seconds=240 cpu=false

A timing is taken only of what agrees with the definition in fp64 on the same inputs. Writes out/kernels.csv, one row a
timing, also for what was refused and why, and a plot a sweep. `cpu=true` runs small sizes on a CPU's backends instead.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import comparators
import timing
import torch
from cases import Case, cpu_cases, gpu_cases
from sheet import Row, origin, plot, printed, wins, write
from torch import Tensor

from tefusion.kernels import reference
from tefusion.kernels.trial import TOLERANCES, distance, errors


def rows_of(case: Case, device: torch.device) -> Iterator[Row]:
    qkv, cu_seqlens = case.inputs(device)
    for backend in case.backends:
        attend = comparators.attention(backend, cu_seqlens)
        for direction in case.directions:
            row = {"op": "attention", "direction": direction, "backend": backend, "groups": case.frames // case.k}
            row |= {name: getattr(case, name) for name in ("sweep", "k", "tokens", "dim", "heads")}
            row["dtype"] = str(case.dtype).removeprefix("torch.")
            yield row | attempt(partial(timed_attention, case, attend, direction, qkv, cu_seqlens))


def attempt(timed: Callable[[], Row]) -> Row:
    """The timing, or why there is none: a refusal is a result, and nobody stops the others."""
    try:
        return {"status": "ok"} | timed()
    except Exception as error:
        return {"status": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def timed_attention(case: Case, attend: Callable, direction: str, qkv: Tensor, cu_seqlens: Tensor | None) -> Row:
    bounds = [0, case.k * case.tokens] if cu_seqlens is None else cu_seqlens.tolist()
    definition = partial(reference.group_attention, cu_seqlens=cu_seqlens)
    error = gated(attend, definition, direction, qkv[:1] if cu_seqlens is None else qkv)
    calls = prepared(attend, direction, timing.copies(qkv))
    took = timing.measure(calls, qkv.device)
    pairs = sum((end - start) ** 2 for start, end in pairwise(bounds))
    pairs *= case.frames // case.k if cu_seqlens is None else 1
    flops = (4 if direction == "forward" else 10) * pairs * case.heads * case.dim
    tflops, most = flops / took.median / 1e6, ceiling(case.dtype, qkv.device)
    measured = {"tflops": tflops, "ceiling_tflops": most, "share": tflops / most, "error": error}
    return spread(took) | measured | {"peak_mb": timing.peak_mb(calls[0], qkv.device)}


def gated(ours: Callable, definition: Callable, direction: str, *inputs: Tensor) -> float:
    """The error of this direction. Raises AssertionError where it is above its dtype's tolerance."""
    out, *gradients = errors(ours, definition, *inputs)
    error, tolerance = (out, max(gradients))[direction == "backward"], TOLERANCES[inputs[0].dtype]
    if not error <= tolerance[direction == "backward"]:
        raise AssertionError(f"wrong: its error is {error:.1e}")
    return error


def prepared(function: Callable, direction: str, *rotated: Sequence[Tensor]) -> list[Callable[[], object]]:
    """A call for each set of inputs, on the stream that is timed; a backward pass's forward has run."""
    calls: list[Callable[[], object]] = []
    for inputs in zip(*rotated, strict=True):
        if direction == "forward":
            calls.append(torch.no_grad()(partial(function, *inputs)))
            continue
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = function(*leaves)
        calls.append(partial(torch.autograd.grad, out, leaves, torch.randn_like(out), retain_graph=True))
    return calls


@cache
def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    return timing.ceiling(dtype, device)


def spread(time: timing.Time) -> Row:
    return {"median_us": time.median, "low_us": time.low, "high_us": time.high, "clock": time.clock}


def norm_rows(device: torch.device, rows: int, width: int, dtype: torch.dtype) -> Iterator[Row]:
    """x + norm(y) at GLM-4V's width: bound by memory, so bytes a second, of x, y and out (dout, y and dy)."""
    x, y = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
    weight, bias = torch.randn(2, width, device=device, dtype=dtype)
    for backend in ("triton", "torch") if device.type == "cuda" else ("torch",):
        for direction in ("forward", "backward"):
            row = {"sweep": "norm", "op": "norm", "direction": direction, "backend": backend, "tokens": rows}
            row |= {"dim": width, "dtype": str(dtype).removeprefix("torch.")}

            def timed(backend: str = backend, direction: str = direction) -> Row:
                function, definition = comparators.norm(backend), comparators.norm("torch")
                error = gated(function, definition, direction, x, y, weight, bias)
                rotated = [timing.copies(x), timing.copies(y)]
                calls = prepared(lambda x, y: function(x, y, weight, bias), direction, *rotated)
                took = timing.measure(calls, device)
                moved = 3 * rows * width * x.element_size() / took.median / 1e3
                return spread(took) | {
                    "gbytes_per_s": moved,
                    "error": error,
                    "peak_mb": timing.peak_mb(calls[0], device),
                }

            yield row | attempt(timed)


@torch.no_grad()
def encoder_rows(device: torch.device, preset: str, frames: int, k: int) -> Iterator[Row]:
    """The whole tower on our kernels, on each of them alone, and on cuDNN with plain LayerNorm."""
    from tefusion.encoders import PRESETS
    from tefusion.vision import create_video_encoder

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.set_default_dtype(dtype)  # 4 billion parameters, made where and as they are used
    with torch.device(device):
        encoder = create_video_encoder(preset, "te_fusion", k).eval()
        video = torch.randn(1, frames, 3, PRESETS[preset].image_size, PRESETS[preset].image_size)
    torch.set_default_dtype(torch.float32)
    config = PRESETS[preset]
    ours, theirs = ("triton", "sdpa-cudnn") if device.type == "cuda" else ("sdpa", "sdpa-math")
    norm = "triton" if device.type == "cuda" else "auto"
    for attention, kernel in ((ours, norm), (theirs, "torch"), (ours, "torch"), (theirs, norm), ("auto", "auto")):
        row = {"sweep": "encoder", "op": "encoder", "direction": "forward", "backend": f"{attention} + {kernel} norm"}
        row |= {"k": k, "tokens": config.grid[0] * config.grid[1] + 1, "dim": config.width // config.heads}
        row |= {"heads": config.heads, "groups": frames // k, "dtype": str(dtype).removeprefix("torch.")}
        with comparators.chosen(attention=attention, norm=kernel):
            yield row | attempt(lambda: timed_encoder(lambda: encoder.encode(video), device))


def timed_encoder(encode: Callable[[], Tensor], device: torch.device) -> Row:
    found = encode()
    with comparators.chosen(attention="sdpa-math", norm="torch"):
        error = distance(found, encode().double())
    if not error <= 5e-2:  # 63 layers of two rounded paths
        raise AssertionError(f"wrong: it is {error:.1e} from the tower on PyTorch's plainest kernels")
    return spread(timing.measure([encode], device)) | {"error": error}


def every_row(device: torch.device) -> Iterator[Row]:
    if device.type == "cpu":
        cases, norm, encoder = cpu_cases(), (32, 48, torch.float32), ("micro", 4, 2)
    else:
        cases, norm, encoder = gpu_cases(), (16 * 257, 1792, torch.bfloat16), ("glm4v-9b", 16, 4)
    first = next(iter(cases))
    yield from rows_of(first, device)
    yield from norm_rows(device, *norm)
    yield from encoder_rows(device, *encoder)
    for case in cases:
        yield from rows_of(case, device)


def parse(words: Sequence[str]) -> dict[str, str]:
    settings = {"out": "results", "seconds": "240", "cpu": "false"}
    for word in words:
        name, _, value = word.partition("=")
        if name not in settings or (name == "seconds" and not value.isdecimal()):
            raise SystemExit(f"{word!r} is none of {', '.join(f'{n}=...' for n in settings)}")
        settings[name] = value
    if settings["cpu"] != "true" and not torch.cuda.is_available():
        raise SystemExit("benchmarks/kernels.py needs a CUDA GPU; cpu=true runs small sizes on a CPU's backends")
    return settings


def main() -> None:
    settings = parse(sys.argv[1:])
    device = torch.device("cpu" if settings["cpu"] == "true" else "cuda")
    folder, end = Path(settings["out"]), time.monotonic() + int(settings["seconds"])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # no graph is captured on the default stream
    rows, where = [], origin()
    for row in every_row(device):
        rows.append(row | where)
        print(printed(row), flush=True)
        write(rows, folder / "kernels.csv")  # each time: the machine may go before the last
        if time.monotonic() > end:
            print(f"{settings['seconds']} seconds are over: what is left was not timed", flush=True)
            break
    if importlib.util.find_spec("matplotlib"):
        plot(rows, folder)
    else:
        print("no plot: matplotlib is not installed")
    print(wins(rows))
    failed = [row for row in rows if row["status"] != "ok" and row["backend"] == "triton"]
    raise SystemExit(f"{len(failed)} calls of our kernels failed" if failed else 0)


if __name__ == "__main__":
    main()
