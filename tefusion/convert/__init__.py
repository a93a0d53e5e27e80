"""Other people's checkpoints -> folders that `tefusion.hub` loads, and GLM-4V-9B's back: `tefusion convert`."""

from collections.abc import Callable
from pathlib import Path

from tefusion.convert.plan import Plan
from tefusion.convert.stream import Say, run


def sources() -> dict[str, Callable[[Path], Plan]]:
    from tefusion.convert.glm4v import from_glm4v
    from tefusion.convert.towers import from_cogvlm2_video, from_siglip, from_timm

    return {"glm4v": from_glm4v, "cogvlm2_video": from_cogvlm2_video, "timm": from_timm, "siglip": from_siglip}


def targets() -> dict[str, Callable[[Path], Plan]]:
    from tefusion.convert.glm4v import to_glm4v

    return {"glm4v": to_glm4v}


def convert(plan: Callable[[Path], Plan], path: Path, out: Path, say: Say, sums: Path | None = None) -> None:
    """The folder `path` becomes the folder `out`, which is whole or not there. Raises ValueError in one line."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder")
    run(plan(path), out, say, sums)


__all__ = ["Plan", "convert", "sources", "targets"]
