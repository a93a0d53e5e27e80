"""Are the kernels right at every shape, and do they give the same bits every time?

    python benchmarks/check_kernels.py out=results runs=200 cpu=false

Forward and every gradient against the definition in fp64: head dims 16 to 128, lengths 1 to 16,448, three dtypes, dense
and ragged, widths of LayerNorm. A process a head dim, since compiling takes longer than running. Writes
out/correctness.csv; exits non-zero where anything is wrong. `cpu=true` asks few small questions of PyTorch's own
attention, or with TRITON_INTERPRET=1 of the kernels.
"""

import csv
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tefusion.kernels import group_attention, layer_norm_op, reference
from tefusion.kernels.trial import TOLERANCES, errors

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DIMS = tuple(range(16, 129, 8))
LENGTHS = (1, 2, 15, 16, 17, 33, 64, 65, 127, 128, 129, 257, 514, 1028, 2056, 4112)
LONGEST = 16_448  # 64 frames of GLM-4V
RAGGED = ((0, 257, 771, 1028), (0, 1, 18, 146, 147, 661))
WIDTHS = (1, 7, 64, 1000, 1792, 4096)
FIELDS = ("op", "dim", "dtype", "shape", "status", "forward", "backward")
Row = dict[str, object]


def attention_rows(dim: int, device: str, backend: str, lengths: Sequence[int], bounds: Sequence) -> list[Row]:
    torch.manual_seed(dim)
    rows = []
    for dtype in DTYPES:
        for length in lengths:
            heads = 1 if length > 4112 else 2
            qkv = torch.randn(1 if length > 257 else 3, length, 3, heads, dim, device=device).to(dtype)
            rows.append(row("attention", qkv, length, partial(group_attention, backend=backend), dense, qkv))
        for ends in bounds:
            cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=device)
            qkv = torch.randn(ends[-1], 3, 2, dim, device=device).to(dtype)
            ours = partial(group_attention, cu_seqlens=cu_seqlens, backend=backend)
            rows.append(row("ragged", qkv, list(ends), ours, partial(dense, cu_seqlens=cu_seqlens), qkv))
    return rows


def dense(qkv: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    return reference.group_attention(qkv, cu_seqlens)


def norm_rows(device: str, widths: Sequence[int]) -> Iterator[Row]:
    for dtype in DTYPES:
        for width in widths:
            x, y = (torch.randn(300, width, device=device).to(dtype) for _ in range(2))
            weight, bias = torch.randn(2, width, device=device).to(dtype)
            given = (x, y, weight, bias)
            yield row(
                "norm",
                y,
                width,
                partial(layer_norm_op.fused, eps=1e-3),
                partial(reference.residual_layer_norm, eps=1e-3),
                *given,
            )


def row(op: str, like: Tensor, shape: object, ours, definition, *inputs: Tensor) -> Row:
    made: Row = {"op": op, "dim": like.shape[-1], "dtype": str(like.dtype).removeprefix("torch."), "shape": shape}
    try:
        forward, *backward = errors(ours, definition, *inputs)
    except Exception as error:  # nobody stops the others
        return made | {"status": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    most = TOLERANCES[like.dtype]
    right = forward <= most[0] and max(backward) <= most[1]
    return made | {"status": "ok" if right else "wrong", "forward": forward, "backward": max(backward)}


def different_bits(device: str, backend: str, runs: int, shapes: Sequence[tuple[int, int]]) -> Iterator[Row]:
    """Forward and backward again and again: one row a shape, `shape` says how often the bits were other ones."""
    for dim, length in shapes:
        qkv = torch.randn(4, length, 3, 4, dim, device=device).to(torch.bfloat16).requires_grad_()

        def once(qkv: Tensor = qkv) -> tuple[Tensor, Tensor]:
            out = group_attention(qkv, backend=backend)
            (slope,) = torch.autograd.grad(out, qkv, torch.sin(out.detach()))
            return out.detach(), slope

        first = once()
        other = sum(not all(map(torch.equal, first, once())) for _ in range(runs))
        said = {"op": "determinism", "dim": dim, "dtype": "bfloat16", "shape": f"{length}: {other} of {runs} differ"}
        yield said | {"status": "wrong" if other else "ok"}


def every_row(cpu: bool, runs: int) -> Iterator[Row]:
    if cpu:
        backend = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "sdpa"
        yield from attention_rows(16, "cpu", backend, (1, 17, 33), ((0, 3, 20),))
        yield from norm_rows("cpu", (24,) if backend == "triton" else ())
        yield from different_bits("cpu", backend, runs, ((16, 17),))
        return
    asked = partial(attention_rows, device="cuda", backend="triton", lengths=LENGTHS, bounds=RAGGED)
    with ProcessPoolExecutor(min(len(DIMS), os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        for rows in pool.map(asked, sorted(DIMS, key=lambda dim: dim not in (64, 72, 112))):
            yield from rows
    yield from attention_rows(112, "cuda", "triton", (LONGEST,), ())
    yield from norm_rows("cuda", WIDTHS)
    yield from different_bits("cuda", "triton", runs, ((112, 257), (112, 1028), (64, 257), (72, 577), (128, 2056)))


def write(rows: Sequence[Row], path: Path) -> None:
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def main() -> None:
    settings = {"out": "results", "runs": "200", "cpu": "false"}
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        if name not in settings or (name == "runs" and not value.isdecimal()):
            raise SystemExit(f"{word!r} is none of {', '.join(f'{n}=...' for n in settings)}")
        settings[name] = value
    cpu, folder = settings["cpu"] == "true", Path(settings["out"])
    if not cpu and not torch.cuda.is_available():
        raise SystemExit("benchmarks/check_kernels.py needs a CUDA GPU; cpu=true asks a few questions of a CPU")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for made in every_row(cpu, int(settings["runs"])):
        rows.append(made)
        if made["status"] != "ok":
            print(*(f"{name}={value}" for name, value in made.items()), flush=True)
        write(rows, folder / "correctness.csv")
    failed = sum(made["status"] != "ok" for made in rows)
    print(f"{len(rows)} questions, {failed} failed", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
