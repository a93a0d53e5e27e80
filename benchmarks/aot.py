"""Compiles the Triton kernels for chips that need not be there, and keeps a ledger of what came out.

    python benchmarks/aot.py processes=2
    python benchmarks/aot.py dims=64,112 architectures=90 dtypes=bf16 out=/tmp/ledger

The launch table's attention kernels for each architecture, D, dtype and length, and LayerNorm's for each width (`dim`
in the ledger): registers, spilled bytes, shared memory, and matrix instructions of the chip (of warp groups on sm_90,
of tensor memory on sm_100). One that spills, needs more shared memory than the chip has, or has none of the
instructions it needs, is a fault: it is printed, and the exit code is 1. Writes aot-<triton version>.csv and .json.
"""

import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tefusion.files import replace_file
from tefusion.kernels import configs, triton_attention, triton_layer_norm
from tefusion.kernels.configs import Config
from tefusion.machine import provenance

ROOT = Path(__file__).parents[1]
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ARCHITECTURES = (80, 90, 100)
DIMS = (16, 32, 48, 64, 72, 80, 88, 96, 104, 112, 120, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LENGTHS = (33, 4112)  # a short group, and narrow tiles
NORMS = {"norm_forward": triton_layer_norm.forward_kernel, "norm_backward": triton_layer_norm.backward_kernel}
WIDTHS = (768, 1792, 4096)
MATRIX = {90: r"\bHGMMA", 100: r"\bUTC\w*MMA"}  # else HMMA, which serves narrow tiles everywhere
Row = dict[str, Any]


def compiled(name: str, architecture: int, dim: int, dtype: str, length: int, config: Config | None = None) -> Row:
    """A line of the ledger. `config` stands in for the table's."""
    config = config or configs.pick(name, architecture, dim, DTYPES[dtype].itemsize, length)
    kernel = triton_attention.KERNELS[name]
    constants = triton_attention.constants(config, dim, length, ragged=True)
    told = told_of(source(kernel, dtype, constants), architecture, triton_attention.options(config))
    asked = {"kernel": name, "architecture": architecture, "dim": dim, "dtype": dtype, "length": length}
    return asked | asdict(config) | told


def compiled_norm(name: str, architecture: int, width: int, dtype: str) -> Row:
    """The same of LayerNorm: a program holds a row at once."""
    launch = triton_layer_norm.launch(width)
    block, warps = launch["BLOCK"], launch["num_warps"]
    told = told_of(source(NORMS[name], dtype, {"BLOCK": block}), architecture, {"num_warps": warps})
    asked = {"kernel": name, "architecture": architecture, "dim": width, "dtype": dtype, "length": 1}
    return asked | {"block_m": 1, "block_n": block, "warps": warps, "stages": 1} | told


def source(kernel: Any, dtype: str, constants: Row) -> ASTSource:
    """The kernel as a launch on aligned tensors specialises it; of attention, the ragged one."""
    types = dict.fromkeys(("qkv", "out", "dout", "dqkv", "x", "y", "dy", "weight", "bias"), f"*{dtype}")
    types |= dict.fromkeys(("lse", "delta", "mean", "rstd", "dweights", "dbiases"), "*fp32")
    types |= {"cu_seqlens": "*i32", "scale": "fp32", "eps": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    return ASTSource(kernel, signature, constants, aligned)


def told_of(kernel: ASTSource, architecture: int, options: Row) -> Row:
    """What the compiler and cuobjdump say of it on a chip."""
    code = triton.compile(kernel, target=GPUTarget("cuda", architecture, 32), options=options)
    usage, sass = inspected(code.asm["cubin"])
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": code.metadata.shared,
        "matrix": len(re.findall(MATRIX.get(architecture, r"\bHMMA"), sass)),
        "hmma": len(re.findall(r"\bHMMA", sass)),
    }


def inspected(cubin: bytes) -> tuple[str, str]:
    """What cuobjdump says of resources, and the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = (
            subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "-sass")
        )
        usage, sass = told
    return usage, sass


def faults(row: Row) -> list[str]:
    """A product in fp32 is three in tf32, whose parts do not fit into registers in the backward: that is known."""
    found = []
    if row["spilled"] and not (row["dtype"] == "fp32" and row["kernel"] != "forward"):
        found.append(f"spills {row['spilled']} bytes")
    if row["shared"] > configs.SHARED[row["architecture"]]:
        found.append(f"needs {row['shared']} bytes of shared memory, of {configs.SHARED[row['architecture']]}")
    if row["kernel"] not in NORMS and not row["matrix"] and not (row["dtype"] == "fp32" and row["hmma"]):
        found.append("has no matrix instructions of its chip")
    return found


def ledger(settings: dict[str, list[str]]) -> list[Row]:
    numbers = ("architectures", "dims", "lengths", "widths")
    chips, dims, lengths, widths = ([int(word) for word in settings[name]] for name in numbers)
    names, dtypes = settings["kernels"], settings["dtypes"]
    wanted = product([name for name in names if name not in NORMS], chips, dims, dtypes, lengths)
    norms = product([name for name in names if name in NORMS], chips, widths, dtypes)
    with ProcessPoolExecutor(int(settings["processes"][0])) as pool:
        rows = [pool.submit(compiled, *asked) for asked in wanted] + [pool.submit(compiled_norm, *n) for n in norms]
        return [row.result() for row in rows]


def write(rows: list[Row], folder: Path) -> Path:
    """<folder>/aot-<triton version>.csv, and .json with where it comes from; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"aot-{triton.__version__}.csv"
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    made = {**provenance(), "triton": triton.__version__, "rows": rows}
    replace_file(path, table.getvalue().encode())
    replace_file(path.with_suffix(".json"), (json.dumps(made, indent=1) + "\n").encode())
    return path


def parse(words: list[str]) -> dict[str, list[str]]:
    """Lists of what is compiled; all of it by default."""
    settings = {
        "kernels": [*triton_attention.KERNELS, *NORMS],
        "architectures": list(map(str, ARCHITECTURES)),
        "dims": list(map(str, DIMS)),
        "dtypes": list(DTYPES),
        "lengths": list(map(str, LENGTHS)),
        "widths": list(map(str, WIDTHS)),
        "processes": [str(os.cpu_count())],
        "out": [str(ROOT / "results")],
    }
    for word in words:
        name, _, values = word.partition("=")
        if name not in settings or not values:
            raise SystemExit(f"{word!r} is none of {', '.join(f'{n}=<list>' for n in settings)}")
        settings[name] = values.split(",")
    return settings


def main() -> None:
    settings = parse(sys.argv[1:])
    rows = ledger(settings)
    print(f"{len(rows)} kernels: {write(rows, Path(settings['out'][0]))}")
    wrong = [(row, faults(row)) for row in rows if faults(row)]
    for row, found in wrong:
        print(" ".join(str(value) for value in list(row.values())[:9]), ": ", "; ".join(found), sep="")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
