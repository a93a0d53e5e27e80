"""The attention kernels compile for chips that are not here, and the ledger says how well."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def compiled(folder, *words):
    """The ledger of `benchmarks/aot.py`, which must find no fault; a process of its own may not be interpreted."""
    command = [sys.executable, ROOT / "benchmarks" / "aot.py", f"out={folder}", "processes=1", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (path,) = folder.glob("aot-*.json")
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_the_kernels_of_an_h200_neither_spill_nor_outgrow_it(tmp_path):
    rows = compiled(tmp_path, "architectures=90", "dims=64,72,112", "dtypes=bf16", "lengths=4112")
    assert len(rows) == 9
    for row in rows:
        assert row["spilled"] == 0
        assert row["registers"] <= 255
        assert row["shared"] <= 227 << 10
        assert row["matrix"] > 10  # HGMMA
        assert row["hmma"] > 0  # narrow tiles


@pytest.mark.heavy
@pytest.mark.parametrize("chip", [80, 100])
def test_the_kernels_of_other_chips(tmp_path, chip):
    compiled(tmp_path, f"architectures={chip}", "dims=64,72,112", "dtypes=bf16", "lengths=33,4112")


def test_faults_are_found():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import aot

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
    with pytest.raises(SystemExit, match="'dimensions=3' is none of kernels=<list>"):
        aot.parse(["dimensions=3"])
