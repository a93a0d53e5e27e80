"""Data-dependent length: what of a video's tokens the decoder gets to see. A registry of its own, since a method that
chooses by content has no place beside those that give every group the same length."""

from tefusion.compressors.options import spelled, split
from tefusion.pruners.base import Pruner
from tefusion.pruners.frame_difference import FrameDifference

PRUNERS: dict[str, type[Pruner]] = {
    "none": Pruner,
    "frame_difference": FrameDifference,
}


def create_pruner(word: str) -> Pruner:
    """`word` may carry options, as in frame_difference:drop=0.75. Raises ValueError on what cannot be."""
    name, options = split(word, PRUNERS, "pruner")
    return PRUNERS[name](**options)


def one_spelling(word: str) -> str:
    """The same pruner with the same options is the same text. Raises ValueError on what cannot be."""
    create_pruner(word)
    return spelled(word, PRUNERS, "pruner")


__all__ = ["PRUNERS", "Pruner", "create_pruner", "one_spelling"]
