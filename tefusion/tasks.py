"""Tasks in the order they can begin, and what comes of them; here one after another in this process."""

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tefusion.failure import failure_of, hung
from tefusion.launch import world
from tefusion.memory import held
from tefusion.stop import STOPPED, Stopped, asked

POLL = 0.5  # seconds between two looks at who says nothing

Send = Callable[[Any], None]  # how a task reports its progress, which is its sign of life
Work = Callable[..., Any]  # work(*arguments, send)


@dataclass(frozen=True)
class Task:
    """`after` is the place of the task that has to be done before."""

    work: Work
    arguments: tuple
    after: int | None = None


@dataclass(frozen=True)
class Event:
    """`kind` is "progress" (any number), then "done" with the result, "failed" with a Failure, or "stopped"."""

    task: int
    kind: str
    value: Any


class Agenda:
    """What is left to do, in order."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks, self.waiting = tasks, list(range(len(tasks)))
        self.done: set[int] = set()

    def take(self) -> int | None:
        """The first task that can begin; None where all have to wait, or nothing shall begin any more."""
        # Several processes that train together agree on a stop within their task, not here.
        if asked() and world() == 1:
            return None
        for i in self.waiting:
            if self.tasks[i].after is None or self.tasks[i].after in self.done:
                self.waiting.remove(i)
                return i
        return None

    def close(self, event: Event) -> Iterator[Event]:
        """The last event of a task; a failed one takes those along that would have come after it."""
        yield event
        if event.kind == "done":
            self.done.add(event.task)
        if event.kind == "failed":
            for i in [i for i in self.waiting if self.tasks[i].after == event.task]:
                self.waiting.remove(i)
                yield from self.close(Event(i, "failed", event.value))


def attempt(i: int, task: Task, send: Send) -> Event:
    before = held()
    try:
        return Event(i, "done", task.work(*task.arguments, send))
    except Stopped as stopped:
        return Event(i, "stopped", str(stopped))
    except Exception as error:
        return Event(i, "failed", failure_of(error, before))


def worded(value: Any) -> str:
    return ", ".join(f"{name} {v}" for name, v in value.items()) if isinstance(value, Mapping) else str(value)


def run_here(tasks: Sequence[Task], hang: float, hanging: Callable[[Event], None]) -> Iterator[Event]:
    """One after another in this process; progress is dropped.

    A task that gives no sign of life for `hang` seconds cannot be left: `hanging` is told of its failure, from another
    thread, and the process ends.
    """
    agenda = Agenda(tasks)
    while (i := agenda.take()) is not None:
        with watched(i, hang, hanging) as send:
            event = attempt(i, tasks[i], send)
        yield from agenda.close(event)
        if event.kind == "stopped" or (event.kind == "failed" and world() > 1):  # perhaps of one process alone
            return


@contextmanager
def watched(task: int, hang: float, hanging: Callable[[Event], None]) -> Iterator[Send]:
    heard, over = [(time.monotonic(), "")], threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            since, last = heard[0]
            if time.monotonic() - since > hang:
                with tempfile.TemporaryFile("w+") as file:
                    faulthandler.dump_traceback(file)
                    file.seek(0)
                    hanging(Event(task, "failed", hung(hang, last, file.read())))
                os._exit(STOPPED)

    def send(value: Any) -> None:
        heard[0] = time.monotonic(), worded(value)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield send
    finally:
        over.set()
