"""The zoo on one screen: k frames -> 1. A new method is one file and one line here; every test finds it there."""

import inspect

from tefusion.choices import nearest
from tefusion.compressors.base import Baseline, Clip, Compressor
from tefusion.compressors.kangaroo import Kangaroo
from tefusion.compressors.pllava import PLLaVA
from tefusion.compressors.qformer import QFormer
from tefusion.compressors.qwen2_vl import Qwen2VL
from tefusion.compressors.region import Region
from tefusion.compressors.resampler3d import Resampler3D
from tefusion.compressors.ssm import SSM
from tefusion.compressors.stc import STC
from tefusion.compressors.stp import STP
from tefusion.compressors.te_fusion import TEFusion
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
    "tpool": TPool,
    "wap": WAP,
    "region": Region,
    "tome_clip": ToMeClip,
    "stc": STC,
    "stp": STP,
    "resampler3d": Resampler3D,
    "ssm": SSM,
}

SIZES = ("width", "embed_dim", "depth", "heads", "grid")  # of the neighbours, for the methods that ask


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

    A method takes what it needs of the sizes. Raises ValueError on an unknown name or option, a k that the method has
    not, or a size that it needs and was not given.
    """
    if name not in COMPRESSORS:
        raise ValueError(f"compressor {name!r} is unknown{nearest(name, COMPRESSORS)}")
    method = COMPRESSORS[name]
    check_k(name, k)
    sizes = dict(zip(SIZES, (width, embed_dim, depth, heads, grid), strict=True))
    for option in options:
        if option not in options_of(name):
            raise ValueError(f"{name} has no option {option!r}{nearest(option, options_of(name))}")
    needed = {size: value for size, value in sizes.items() if size in inspect.signature(method).parameters}
    for size, value in needed.items():
        if value is None:
            raise ValueError(f"{name} needs {size}")
    return method(k=k, **needed, **options)


def options_of(name: str) -> set[str]:
    """The settings that a method has of its own."""
    return set(inspect.signature(COMPRESSORS[name]).parameters) - {"k", *SIZES}


def check_k(name: str, k: object) -> None:
    """Raises ValueError where `k` is no group size of the method `name`."""
    valid = COMPRESSORS[name].valid_k
    if type(k) is not int or k not in valid:
        said = f"{valid[0]} to {valid[-1]}" if isinstance(valid, range) else ", ".join(map(str, valid))
        raise ValueError(f"{name}: k must be one of {said}, got {k!r}")


__all__ = ["COMPRESSORS", "Clip", "Compressor", "check_k", "create_compressor", "options_of"]
