"""Processes that do not outlive the one that started them. Imports little: they start quickly."""

import multiprocessing
import os
import signal
import threading
from contextlib import suppress


def end_with_parent() -> None:
    """From now on this process, and all that it starts, end when its parent does, however that ends.

    It leads a group of its own: a key pressed in the terminal reaches the parent alone, which passes it on, and
    `end_group` reaches its children.
    """
    os.setpgid(0, 0)
    threading.Thread(target=_outlive_nobody, daemon=True).start()


def _outlive_nobody() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def end_group(pid: int) -> None:
    """At once, all that the process started, where it came to lead a group."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
