"""The kernels' benchmarks run, on a CPU's backends; the table of docs/attention.md is what its code prints."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # as for the scripts themselves

import attention_share  # noqa: E402
import kernels  # noqa: E402
import sheet  # noqa: E402
import timing  # noqa: E402


def run(tmp_path, *command, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OUT": str(tmp_path), "PYTHON": sys.executable} | environment
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_of_the_docs_is_what_the_code_prints():
    text = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")
    assert attention_share.filled(text) == text
    with pytest.raises(ValueError, match="no place"):
        attention_share.filled("# Group attention")


def test_the_floors_are_those_of_the_closed_form():
    found = [round(attention_share.layer_floor(224, k), 2) for k in (1, 2, 4, 8, 16)]
    assert found == [0.86, 1.20, 2.40, 4.79, 9.59]


def test_the_script_for_a_gpu_runs_everything_on_a_cpu(tmp_path):
    done = run(tmp_path, "bash", "benchmarks/gpu.sh", "cpu=true")
    assert done.returncode == 0, done.stdout + done.stderr
    timed = rows_of(tmp_path / "kernels.csv")
    assert tuple(timed[0]) == sheet.FIELDS
    assert {row["status"] for row in timed} == {"ok"}
    assert {row["sweep"] for row in timed} == {"k", "ragged", "norm", "encoder"}
    assert all(float(row["low_us"]) <= float(row["median_us"]) <= float(row["high_us"]) for row in timed)
    assert {row["status"] for row in rows_of(tmp_path / "correctness.csv")} == {"ok"}
    assert (tmp_path / "kernels.svg").is_file()
    assert "0 of 3 parts failed" in done.stdout


def test_without_a_gpu_every_part_says_so_and_the_script_fails(tmp_path):
    done = run(tmp_path, "bash", "benchmarks/gpu.sh")
    assert done.returncode == 1
    said = done.stdout.splitlines()
    assert sum("needs a CUDA GPU" in line for line in said) == 2
    assert said[-1] == "== 2 of 3 parts failed: check_kernels kernels"


def test_what_is_wrong_is_not_timed():
    def wrong(qkv):
        return qkv[:, :, 0] * 1.01

    def right(qkv):
        return qkv[:, :, 0]

    qkv = torch.randn(1, 3, 3, 2, 8)
    assert kernels.gated(right, right, "forward", qkv) == 0
    for direction in ("forward", "backward"):
        row = kernels.attempt(lambda d=direction: {"error": kernels.gated(wrong, right, d, qkv)})
        assert row["status"] == "AssertionError: wrong: its error is 1.0e-02"
    assert kernels.attempt(lambda: 1 / 0) == {"status": "ZeroDivisionError: division by zero"}


def test_a_backward_call_leaves_its_forward_out():
    seen = []
    calls = kernels.prepared(lambda x: seen.append(1) or x * x, "backward", [torch.ones(2), torch.ones(2)])
    assert len(seen) == len(calls) == 2
    assert all(len(call()) == 1 for call in calls * 2)
    assert len(seen) == 2


def test_inputs_are_rotated_beyond_the_cache(monkeypatch):
    class OnGpu:
        is_cuda, device = True, "cuda"

        def numel(self):
            return 10 * 2**20

        def element_size(self):
            return 2

    cache = type("Properties", (), {"L2_cache_size": 60 * 2**20})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cache)
    monkeypatch.setattr(torch, "randn_like", lambda tensor: tensor)
    assert len(timing.copies(OnGpu())) == 12


def test_where_our_kernel_wins_is_read_off_the_rows():
    def row(backend, k, us, status="ok", direction="forward"):
        said = {"op": "attention", "dim": 112, "dtype": "bfloat16", "tokens": 257, "status": status}
        return said | {"direction": direction, "backend": backend, "k": k, "median_us": us}

    rows = [row("triton", 1, 1.0), row("sdpa", 1, 2.0), row("triton", 2, 3.0), row("sdpa", 2, 2.0)]
    rows += [row("triton", 4, 0.0, status="wrong"), row("sdpa", 4, 2.0), row("triton", 8, 1.0, direction="backward")]
    assert sheet.wins(rows) == "triton is the fastest forward at\n  dim 112, bfloat16, 1 x 257 tokens"
    assert sheet.wins(rows[2:4]).endswith("no shape")


@pytest.mark.parametrize("word", ["seconds=many", "gpu=1"])
def test_a_word_that_is_none_is_refused(word):
    with pytest.raises(SystemExit, match="is none of out="):
        kernels.parse([word])
