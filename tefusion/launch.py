"""Which of a launcher's processes this is."""

import os


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_first() -> None:
    """Everybody waits until everybody is here."""
    if world() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
