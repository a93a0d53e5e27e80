"""The zoo on one screen: k frames -> 1. A new method is one file and one line here; every test finds it there."""

import inspect

from tefusion.compressors.base import Baseline, Clip, Compressor
from tefusion.compressors.fewer_frames import FewerFrames
from tefusion.compressors.image_grid import ImageGrid
from tefusion.compressors.kangaroo import Kangaroo
from tefusion.compressors.lower_resolution import LowerResolution
from tefusion.compressors.options import SIZES, check_option, defaults, spelled, split
from tefusion.compressors.pllava import PLLaVA
from tefusion.compressors.pvc import PVC
from tefusion.compressors.qformer import QFormer
from tefusion.compressors.qwen2_vl import Qwen2VL
from tefusion.compressors.region import Region
from tefusion.compressors.resampler3d import Resampler3D
from tefusion.compressors.ssm import SSM
from tefusion.compressors.stc import STC
from tefusion.compressors.stp import STP
from tefusion.compressors.te_factor import TEFactor
from tefusion.compressors.te_fusion import TEFusion
from tefusion.compressors.te_interleave import TEInterleave
from tefusion.compressors.te_pyramid import TEPyramid
from tefusion.compressors.te_shift import TEShift
from tefusion.compressors.tome_clip import ToMeClip
from tefusion.compressors.tpool import TPool
from tefusion.compressors.wap import WAP

COMPRESSORS: dict[str, type[Compressor]] = {
    "none": Baseline,
    "qwen2_vl": Qwen2VL,
    "te_fusion": TEFusion,
    "kangaroo": Kangaroo,
    "pllava": PLLaVA,
    "qformer": QFormer,
    "image_grid": ImageGrid,
    "te_interleave": TEInterleave,
    "te_shift": TEShift,
    "te_pyramid": TEPyramid,
    "te_factor": TEFactor,
    "pvc": PVC,
    "tpool": TPool,
    "wap": WAP,
    "region": Region,
    "tome_clip": ToMeClip,
    "stc": STC,
    "stp": STP,
    "resampler3d": Resampler3D,
    "ssm": SSM,
    "fewer_frames": FewerFrames,
    "lower_resolution": LowerResolution,
}


def create_compressor(
    name: str,
    *,
    k: int,
    width: int,
    embed_dim: int,
    depth: int | None = None,
    heads: int | None = None,
    grid: tuple[int, int] | None = None,
    **options: object,
) -> Compressor:
    """A compressor for a tower of this `width`, `depth`, `heads` and patch `grid`, in front of a decoder's `embed_dim`.

    `name` may carry options, as in te_fusion:readout=mean. A method takes what it needs of the sizes. Raises
    ValueError on an unknown name or option, a k that the method has not, or a size that it needs and was not given.
    """
    name, own = split(name, COMPRESSORS)
    method = COMPRESSORS[name]
    check_k(name, k)
    sizes = dict(zip(SIZES, (width, embed_dim, depth, heads, grid), strict=True))
    for option in options:
        check_option(name, option, defaults(method))
    needed = {size: value for size, value in sizes.items() if size in inspect.signature(method).parameters}
    for size, value in needed.items():
        if value is None:
            raise ValueError(f"{name} needs {size}")
    return method(k=k, **needed, **(options | own))


def method_of(word: str) -> type[Compressor]:
    """The class behind a name that may carry options."""
    return COMPRESSORS[split(word, COMPRESSORS)[0]]


def trained() -> list[str]:
    """The methods without the controls."""
    return [name for name, method in COMPRESSORS.items() if not method.control]


def options_of(word: str) -> set[str]:
    """The settings that a method has of its own."""
    return set(defaults(method_of(word)))


def one_spelling(word: str) -> str:
    """The same method with the same options is the same text. Raises ValueError on what cannot be."""
    return spelled(word, COMPRESSORS)


def check_k(name: str, k: object) -> None:
    """Raises ValueError where `k` is no group size of the method `name`, which may carry options."""
    valid = method_of(name).valid_k
    if type(k) is not int or k not in valid:
        said = f"{valid[0]} to {valid[-1]}" if isinstance(valid, range) else ", ".join(map(str, valid))
        raise ValueError(f"{name}: k must be one of {said}, got {k!r}")


__all__ = [
    "COMPRESSORS",
    "Clip",
    "Compressor",
    "check_k",
    "create_compressor",
    "method_of",
    "one_spelling",
    "options_of",
    "trained",
]
