"""Compiles the attention kernels for chips that need not be there, and keeps a ledger of what came out.

    python benchmarks/aot.py processes=2
    python benchmarks/aot.py dims=64,112 architectures=90 dtypes=bf16 out=/tmp/ledger

The launch table's kernels for each architecture, D, dtype and length: registers, spilled bytes, shared memory, and
matrix instructions of the chip (of warp groups on sm_90, of tensor memory on sm_100). One that spills, needs more
shared memory than the chip has, or has none of those instructions, is a fault: it is printed, and the exit code is 1.
Writes aot-<triton version>.csv and .json.
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

from tefusion.kernels import configs, triton_attention
from tefusion.kernels.configs import Config
from tefusion.machine import provenance

ROOT = Path(__file__).parents[1]
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ARCHITECTURES = (80, 90, 100)
DIMS = (16, 32, 48, 64, 72, 80, 88, 96, 104, 112, 120, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LENGTHS = (33, 4112)  # a short group, and narrow tiles
MATRIX = {90: r"\bHGMMA", 100: r"\bUTC\w*MMA"}  # else HMMA, which serves narrow tiles everywhere
Row = dict[str, Any]


def compiled(name: str, architecture: int, dim: int, dtype: str, length: int, config: Config | None = None) -> Row:
    """A line of the ledger. `config` stands in for the table's."""
    config = config or configs.pick(name, architecture, dim, DTYPES[dtype].itemsize, length)
    target = GPUTarget("cuda", architecture, 32)
    code = triton.compile(
        source(name, dim, dtype, length, config), target=target, options=triton_attention.options(config)
    )
    usage, sass = inspected(code.asm["cubin"])
    return {
        "kernel": name,
        "architecture": architecture,
        "dim": dim,
        "dtype": dtype,
        "length": length,
        **asdict(config),
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": code.metadata.shared,
        "matrix": len(re.findall(MATRIX.get(architecture, r"\bHMMA"), sass)),
        "hmma": len(re.findall(r"\bHMMA", sass)),
    }


def source(name: str, dim: int, dtype: str, length: int, config: Config) -> ASTSource:
    """The ragged kernel as a launch on aligned tensors specialises it."""
    kernel = triton_attention.KERNELS[name]
    constants = triton_attention.constants(config, dim, length, ragged=True)
    types = dict.fromkeys(("qkv", "out", "dout", "dqkv"), f"*{dtype}")
    types |= {"lse": "*fp32", "delta": "*fp32", "cu_seqlens": "*i32", "scale": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    return ASTSource(kernel, signature, constants, aligned)


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
    if not row["matrix"] and not (row["dtype"] == "fp32" and row["hmma"]):
        found.append("has no matrix instructions of its chip")
    return found


def ledger(wanted: list[tuple[str, int, int, str, int]], processes: int) -> list[Row]:
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(compiled, *zip(*wanted, strict=True)))


def write(rows: list[Row], folder: Path) -> Path:
    """<folder>/aot-<triton version>.csv, and .json with where it comes from; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"aot-{triton.__version__}.csv"
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    made = {**provenance(), "triton": triton.__version__, "rows": rows}
    for name, text in ((path, table.getvalue()), (path.with_suffix(".json"), json.dumps(made, indent=1) + "\n")):
        unfinished = name.with_suffix(".part")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(name)
    return path


def parse(words: list[str]) -> dict[str, list[str]]:
    """Lists of what is compiled; all of it by default."""
    settings = {
        "kernels": list(triton_attention.KERNELS),
        "architectures": list(map(str, ARCHITECTURES)),
        "dims": list(map(str, DIMS)),
        "dtypes": list(DTYPES),
        "lengths": list(map(str, LENGTHS)),
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
    chips, dims, lengths = (map(int, settings[name]) for name in ("architectures", "dims", "lengths"))
    wanted = list(product(settings["kernels"], chips, dims, settings["dtypes"], lengths))
    rows = ledger(wanted, int(settings["processes"][0]))
    print(f"{len(rows)} kernels: {write(rows, Path(settings['out'][0]))}")
    wrong = [(row, faults(row)) for row in rows if faults(row)]
    for row, found in wrong:
        print(" ".join(str(value) for value in list(row.values())[:9]), ": ", "; ".join(found), sep="")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
