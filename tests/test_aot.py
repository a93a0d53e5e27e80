"""The attention kernels compile for chips that are not here, and the ledger says how well."""

import csv
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # as for the script itself

import aot  # noqa: E402


def compiled(folder, *words):
    """The ledger of `benchmarks/aot.py`, which must find no fault; a process of its own may not be interpreted."""
    command = [sys.executable, ROOT / "benchmarks" / "aot.py", f"out={folder}", "processes=1", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (path,) = folder.glob("aot-*.json")
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_the_kernels_of_an_h200_neither_spill_nor_outgrow_it(tmp_path):
    rows = compiled(tmp_path, "architectures=90", "dims=64,72,112", "dtypes=bf16", "lengths=4112", "widths=4096")
    attention = [row for row in rows if not row["kernel"].startswith("norm")]
    assert (len(rows), len(attention)) == (11, 9)
    for row in rows:
        assert row["spilled"] == 0
        assert row["registers"] <= 255
        assert row["shared"] <= 227 << 10
    for row in attention:
        assert row["matrix"] > 10  # HGMMA
        assert row["hmma"] > 0  # narrow tiles
    if known := recorded(triton.__version__):
        assert {tuple(row.items()) for row in rows} <= {tuple(row.items()) for row in known}


def recorded(version):
    """The committed ledger of a Triton version; no row where there is none."""
    path = ROOT / "results" / f"aot-{version}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("aot-*.json")), ids=lambda path: path.stem)
def test_a_committed_ledger_has_every_chip_and_no_fault(path):
    rows = recorded(path.stem.removeprefix("aot-"))
    asked = {(row["kernel"], row["architecture"], row["dim"]) for row in rows}
    assert asked >= set(product(("forward", "queries", "keys"), (80, 90, 100), (64, 72, 112)))
    assert asked >= set(product(("norm_forward", "norm_backward"), (80, 90, 100), (1792, 4096)))
    assert [row for row in rows if aot.faults(row)] == []
    with path.with_suffix(".csv").open(encoding="utf-8") as table:
        assert list(csv.DictReader(table)) == [{name: str(value) for name, value in row.items()} for row in rows]


@pytest.mark.heavy
@pytest.mark.parametrize("chip", [80, 100])
def test_the_kernels_of_other_chips(tmp_path, chip):
    compiled(tmp_path, f"architectures={chip}", "dims=64,72,112", "dtypes=bf16", "lengths=33,4112")


def test_faults_are_found():
    sound = {
        "kernel": "keys",
        "architecture": 90,
        "dtype": "bf16",
        "spilled": 0,
        "shared": 227 << 10,
        "matrix": 1,
        "hmma": 0,
    }
    assert aot.faults(sound) == []
    assert aot.faults(sound | {"spilled": 8}) == ["spills 8 bytes"]
    assert aot.faults(sound | {"shared": 1 + (227 << 10)}) == ["needs 232449 bytes of shared memory, of 232448"]
    assert aot.faults(sound | {"matrix": 0, "hmma": 5}) == ["has no matrix instructions of its chip"]
    assert aot.faults(sound | {"kernel": "norm_backward", "matrix": 0}) == []
    assert aot.faults(sound | {"kernel": "norm_backward", "matrix": 0, "spilled": 8}) == ["spills 8 bytes"]
    with pytest.raises(SystemExit, match="'dimensions=3' is none of kernels=<list>"):
        aot.parse(["dimensions=3"])
