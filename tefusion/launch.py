"""Which of a launcher's processes this is, and what they do together."""

import atexit
import os
import sys
from typing import NoReturn, TypeVar

T = TypeVar("T")


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def join() -> None:
    """The launcher's processes find together; whatever they do together comes after it. Raises ValueError where they
    do not, since each would do, and write, everything alone."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    found = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).num_processes  # it does not look by itself
    if found != world():
        raise ValueError(f"{world()} processes were started and see {found}; set ACCELERATE_USE_CPU=1 without a GPU")


def wait_for_first() -> None:
    """Everybody waits until everybody is here."""
    if world() > 1:
        from accelerate import PartialState

        join()
        PartialState().wait_for_everyone()


def gather(things: list[T]) -> list[T]:
    """Everybody's things, in the order of the processes; nobody goes on before all have given theirs."""
    if world() == 1:
        return things
    from accelerate.utils import gather_object

    join()
    return gather_object(things)


def leave(code: int = 0) -> NoReturn:
    """Ends this process as `sys.exit` does; one of several leaves its interpreter as it stands.

    Gloo's threads may still hold a tensor of the last exchange. One that lets go of it while the interpreter is taken
    down aborts the process, with everything done (pytorch issue 190489).
    """
    if world() == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
