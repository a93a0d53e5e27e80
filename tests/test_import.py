"""What an import costs and who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tefusion

HEAVY = {"transformers", "timm", "decord", "av", "accelerate", "matplotlib", "triton", "xformers", "rich", "tokenizers"}
LOADED = "import sys, {}; print(*{{name.partition('.')[0] for name in sys.modules}})"


def loaded(module):
    done = subprocess.run([sys.executable, "-c", LOADED.format(module)], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def torchs_own():
    return loaded("torch.utils.flop_counter") & HEAVY  # which knows the kernels' FLOPs, and loads Triton itself


def test_the_zoo_needs_nothing_heavy(torchs_own):
    assert (loaded("tefusion.compressors") & HEAVY) - torchs_own == set()


def test_the_encoder_and_the_vlm_need_nothing_heavy_until_used(torchs_own):
    assert (loaded("tefusion.vlm") & HEAVY) - torchs_own == set()


def test_frames_are_read_without_torch():
    assert loaded("tefusion.video") & {"torch", *HEAVY} == set()


def test_the_package_alone_does_not_even_need_torch():
    assert loaded("tefusion") & {"torch", "numpy", *HEAVY} == set()


MAY_IMPORT = {
    "kernels": {"kernels"},
    "encoders": {"encoders", "kernels", "choices", "json_files", "tensor_files"},
    "compressors": {"compressors", "encoders.inflate", "kernels", "choices", "resize"},
    "projector.py": {"encoders.inflate", "kernels"},
    "vision.py": {"compressors", "encoders", "projector", "choices"},
    "pruners": {"pruners", "compressors.options"},
    "vlm.py": {"vision", "pruners"},
}
ROOT = Path(tefusion.__file__).parent


def imported(path):
    """Our own modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.removeprefix("tefusion.") for name in names if name.startswith("tefusion."))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows_run_one_way(part):
    files = [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py"))
    files = [path for path in files if path.name != "weights.py"]  # a door: it returns a whole VideoEncoder
    assert files
    for path in files:
        for name in imported(path):
            allowed = any(name == may or name.startswith(f"{may}.") for may in MAY_IMPORT[part])
            assert allowed, f"{path.name} imports tefusion.{name}"
