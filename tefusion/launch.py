"""Which of a launcher's processes this is, and what they do together."""

import os
from typing import TypeVar

T = TypeVar("T")


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def wait_for_first() -> None:
    """Everybody waits until everybody is here."""
    if world() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def gather(things: list[T]) -> list[T]:
    """Everybody's things, in the order of the processes; nobody goes on before all have given theirs."""
    if world() == 1:
        return things
    from accelerate.utils import gather_object

    return gather_object(things)
