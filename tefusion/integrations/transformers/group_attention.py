"""Group attention inside a tower that is already there: attention of each frame -> attention of k neighbouring frames
(MotionBench, 2501.02955, section 4, where it is the encoder's half of te_fusion)."""

from collections.abc import Callable
from types import TracebackType

from torch import nn

from tefusion.compressors.base import LARGEST_GROUP
from tefusion.integrations.transformers.calls import Calls, take_images_alone
from tefusion.integrations.transformers.towers import adapter_of, find_tower


class GroupAttention:
    """What `group_attention_` did to a tower, until `undo`; as a context manager, until the block ends."""

    def __init__(self, tower: nn.Module, k: int, restore: list[Callable[[], None]]):
        self.tower, self.k, self.restore = tower, k, restore

    def undo(self) -> None:
        """The tower is again what it was. A second call does nothing."""
        while self.restore:
            self.restore.pop()()
        self.tower.__dict__.pop("group_attention", None)

    def __enter__(self) -> "GroupAttention":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()


def group_attention_(tower: nn.Module, k: int) -> GroupAttention:
    """Every attention of `tower` reaches over k neighbouring frames, in place.

    `tower` is one of `TOWERS`, or a model that holds one. In a whole model that tells images from videos, images keep
    k = 1; a tower alone takes every frame that it is given for a video's, unless its grid says that it is an image.
    Raises ValueError on a model without a known tower, on a tower that is grouped already, and in the forward on frames
    that do not divide into groups.
    """
    if type(k) is not int or not 1 <= k <= LARGEST_GROUP:
        raise ValueError(f"group attention: k must be one of 1 to {LARGEST_GROUP}, got {k!r}")
    found = find_tower(tower)
    if (already := found.__dict__.get("group_attention")) is not None:
        raise ValueError(f"{type(found).__name__} already has groups of k = {already.k}; undo them first")
    adapter = adapter_of(found)
    assert adapter is not None  # find_tower looked
    calls = Calls(k)
    restore = adapter.install(found, calls) + (take_images_alone(tower, calls) if found is not tower else [])
    group = GroupAttention(found, k, restore)
    found.__dict__["group_attention"] = group
    return group
