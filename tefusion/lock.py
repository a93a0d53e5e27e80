"""One process at a time: a lock that names who holds it and goes with them, however they end."""

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from tefusion.stop import Stopped, asked

PAUSE = 1.0  # seconds between two looks at a lock that somebody else holds


class LockedError(ValueError):
    """Somebody else holds the lock; the message says who."""


@contextmanager
def locked(path: Path, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Held until the block ends. Where somebody else holds it, `waiting` is told who about every second until they are
    done, or Stopped is raised since this process is asked to end; without it that is a LockedError.

    The kernel keeps the lock, the file only says whose it is: a name left by a dead process hinders nobody. A record
    lock, not flock: a child that outlives its parent does not keep it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        while not taken(file):
            held = f"{path} is held by {holder(file)}"
            if waiting is None:
                raise LockedError(held)
            if asked():
                raise Stopped(f"stopped since {held}")
            waiting(held)
            time.sleep(PAUSE)
        sign(file, me())
        try:
            yield
        finally:
            sign(file, "")


def patiently(held: str) -> None:
    """Waits without a word."""


def taken(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # systems differ in how they refuse
        return False
    return True


def sign(file: IO[str], name: str) -> None:
    file.truncate(0)
    file.write(name)
    file.flush()


def me() -> str:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    command = shlex.join(sys.argv)
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since, "command": command})


def holder(file: IO[str]) -> str:
    """As the file names them; they may have taken the lock a moment ago and not have signed yet."""
    file.seek(0)
    try:
        name = json.loads(file.read())
        return f"process {name['pid']} on {name['host']} since {name['since']}: {name['command']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has not signed yet"
