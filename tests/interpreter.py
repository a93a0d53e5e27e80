"""Triton's interpreter for tests: files of tests that run under it, and repairs of what it gets wrong.

TRITON_INTERPRET is read when a kernel is decorated, so such files (`interpreted_*.py`, which pytest does not collect by
itself) are run by a pytest of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def run(file: str, marks: str = "not heavy") -> None:
    """Runs a file of this folder under the interpreter; fails with what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marks, HERE / file]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def repair() -> None:
    """It multiplies the bit patterns of bf16, truncates to bf16, and wraps the language anew in every call."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def widened(self, handle):
        return cast(self, handle, tl.float32) if handle.dtype.scalar == tl.bfloat16 else handle

    def create_dot(self, a, b, *rest):
        return dot(self, widened(self, a), widened(self, b), *rest)

    def cast_impl(self, handle, target):
        if handle.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return interpreter.TensorHandle(nearest_bf16(handle.data), tl.bfloat16)
        return cast(self, handle, target)

    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    for name in ("create_fp_trunc", "create_fp_ext"):
        setattr(builder, name, cast_impl)
    interpreter.InterpretedFunction.__call__ = called


def nearest_bf16(data: np.ndarray) -> np.ndarray:
    """Bit patterns of the nearest bf16, ties to even. NaN stays NaN."""
    bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(data), 0x7FC0, rounded).astype(np.uint16)


patched: set[str] = set()


def called(function, *args, **kwargs):
    """InterpretedFunction.__call__, which patches the language again in every call: seconds a launch."""
    from triton.runtime import interpreter

    if function.fn.__module__ not in patched:
        patched.add(function.fn.__module__)
        interpreter._patch_lang(function.fn)
    return function.rewrite()(*args, **kwargs)
