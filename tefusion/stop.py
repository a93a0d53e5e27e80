"""SIGTERM and SIGINT ask a run to save what it has and end; a second one ends it at once."""

import os
import signal
from types import FrameType

STOPPED = 75  # the exit code of a run that wants to be started again: EX_TEMPFAIL, which job schedulers requeue on

_asked: list[int] = []


class Stopped(Exception):
    """The run was asked to end and has saved what it needs to go on."""


def listen() -> None:
    """From now on the two signals only leave word, which `asked` tells; who loops looks there between two steps."""
    _asked.clear()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave_word)


def leave_to_parent(worker: int = 0) -> None:
    """For a process that reads data for one that listens: a signal to the whole group must not take it away before the
    other has saved. It ends with its parent all the same."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def asked() -> bool:
    return bool(_asked)


def _leave_word(number: int, frame: FrameType | None) -> None:
    if _asked:
        os._exit(128 + number)
    _asked.append(number)
