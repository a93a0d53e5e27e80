"""SIGTERM, SIGINT and the end of its time ask a run to save what it has and end; a second signal ends it at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED = 75  # the exit code of a run that wants to be started again: EX_TEMPFAIL, which job schedulers requeue on

_asked: list[int] = []
_until: list[float] = []  # moments of the monotonic clock from which on a run is asked to end


class Stopped(Exception):
    """The run was asked to end and has saved what it needs to go on."""


def listen() -> None:
    """From now on the two signals only leave word, which `asked` tells; who loops looks there between two steps."""
    _asked.clear()
    for number in SIGNALS:
        signal.signal(number, _leave_word)


@contextmanager
def listening() -> Iterator[None]:
    """For a command: what the signals did before, they do again afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_parent(worker: int = 0) -> None:
    """For a process that reads data for one that listens: a signal to the whole group must not take it away before the
    other has saved. It ends with its parent all the same."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def asked() -> bool:
    return bool(_asked) or any(time.monotonic() >= moment for moment in _until)


@contextmanager
def within(minutes: float) -> Iterator[None]:
    """What runs longer is asked to end; 0 minutes are no limit."""
    until = [time.monotonic() + 60 * minutes] if minutes else []
    _until.extend(until)
    try:
        yield
    finally:
        for moment in until:
            _until.remove(moment)


def _leave_word(number: int, frame: FrameType | None) -> None:
    if _asked:
        os._exit(128 + number)
    _asked.append(number)
