"""Compiles the attention kernels for chips that need not be there, and keeps a ledger of what the compiler made of them.

    python benchmarks/aot.py processes=2

Every kernel of the launch table, for each architecture, D and dtype: registers, spilled bytes, shared memory, and matrix
instructions (warp-group ones on sm_90, those of the tensor memory on sm_100). A kernel that spills, does not fit into the
chip's shared memory or has no matrix instructions is a fault, and the exit code is 1. Writes
results/aot-<triton version>.json and .csv.
"""

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
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
ARCHITECTURES = (80, 86, 90, 100)
DIMS = (16, 32, 48, 64, 72, 80, 88, 96, 104, 112, 120, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LENGTHS = (33, 4112)  # one of each bucket, both with narrow tiles
MATRIX = {90: r"\bHGMMA", 100: r"\bUTC\w*MMA"}  # else HMMA, which serves narrow tiles everywhere
Row = dict[str, Any]


def compiled(name: str, architecture: int, dim: int, dtype: str, length: int, config: Config | None = None) -> Row:
    """A line of the ledger. `config` stands in for the table's."""
    config = config or configs.pick(name, architecture, dim, DTYPES[dtype], length)
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
    found = []
    if row["spilled"]:
        found.append(f"spills {row['spilled']} bytes")
    if row["shared"] > configs.SHARED[row["architecture"]]:
        found.append(f"needs {row['shared']} bytes of shared memory, of {configs.SHARED[row['architecture']]}")
    if not row["matrix"] and not (row["dtype"] == "fp32" and row["hmma"]):
        found.append("has no matrix instructions of its chip")
    return found


def cases() -> Iterable[tuple[str, int, int, str, int]]:
    return product(triton_attention.KERNELS, ARCHITECTURES, DIMS, DTYPES, LENGTHS)
