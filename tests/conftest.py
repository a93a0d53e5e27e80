"""One thread a worker; shapes are checked at every boundary that states them."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import config, install_import_hook

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


def speaks_of_tensors(source: str) -> bool:
    """Other modules guard their doors with sentences of their own, which a type checker in front would hide."""
    return "\nfrom jaxtyping import" in source and "\nfrom torch import Tensor" in source


SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "tefusion").rglob("*.py"))
    if speaks_of_tensors(path.read_text(encoding="utf-8"))
]
install_import_hook(SHAPED, "beartype.beartype")


class Unchecked:
    """Finds the Triton kernels before the hook does: Triton reads the functions it compiles, so none may be wrapped."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, path, target) if name.startswith("tefusion.kernels.triton_") else None


sys.meta_path.insert(0, Unchecked)


@pytest.fixture
def unchecked():
    """The package as its users run it: without the shape checks."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """A generated set as small as all its categories, answers and strides allow."""
    from tefusion.data.motion import MotionSettings, write_motion

    return write_motion(tmp_path_factory.mktemp("clips") / "motion", MotionSettings(train=96, dev=24, test=24))


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Frames and image models that several tests share."""
    return tmp_path_factory.mktemp("home")
