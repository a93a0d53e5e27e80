"""Tasks in processes of their own: one that dies or hangs fails its task alone, and another takes its place."""

import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from tefusion.failure import Failure, ended, hung
from tefusion.memory import held, oom_kills
from tefusion.orphan import end_group, end_with_parent
from tefusion.stop import asked, listen
from tefusion.tasks import POLL, Agenda, Event, Task, attempt, worded

START = 600.0  # seconds for a process to begin, beyond those in which it may hang
GRACE = 10.0  # and to end when it has nothing left to do
STACK = signal.SIGUSR1  # has a worker write down where it is


def run_pool(tasks: Sequence[Task], jobs: int, threads: int, hang: float) -> Iterator[Event]:
    """`jobs` at once, each process with `threads` threads of torch. Processes are spawned and kept.

    A task that gives no sign of life for `hang` seconds is ended with all its processes. Where `stop.asked()`, nothing
    new begins, and what runs is asked to save and end.
    """
    agenda, crew, passed_on = Agenda(tasks), list[Worker](), False
    try:
        while True:
            idle = [worker for worker in crew if not worker.busy]
            while (idle or len(crew) < jobs) and (i := agenda.take()) is not None:
                if not idle:
                    idle.append(Worker(threads))
                    crew += idle
                idle.pop().begin(i, tasks[i])
            if asked() and not passed_on:
                passed_on = True
                for worker in crew:
                    worker.process.terminate()
            busy = [worker for worker in crew if worker.busy]
            if not busy:
                return
            for event in hear(busy, hang):
                yield from [event] if event.kind == "progress" else agenda.close(event)
            crew = [worker for worker in crew if not worker.gone]
    finally:  # where the reader of events stops early, nobody works on
        for worker in crew:
            worker.leave()


def hear(busy: Sequence["Worker"], hang: float) -> Iterator[Event]:
    """One event of each that has something to say or shall say no more."""
    ready = wait([worker.connection for worker in busy], POLL)
    for worker in busy:
        worker.peak = max(worker.peak, held(worker.pid))
        if worker.connection in ready:
            event = worker.receive()
            if event.kind != "begun":
                yield event
        elif time.monotonic() - worker.heard > hang:
            yield worker.cut_off(hang)


class Worker:
    """A process of the pool, seen from outside; `busy` while it has a task at hand."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.stack, stack = context.Pipe(duplex=False)
        # No daemon: a task may start processes.
        self.process = context.Process(target=serve, args=(theirs, stack, threads))
        self.process.start()
        theirs.close()
        stack.close()
        self.pid = cast(int, self.process.pid)
        self.busy = self.gone = False

    def begin(self, i: int, task: Task) -> None:
        self.task, self.busy, self.heard, self.last = i, True, time.monotonic() + START, ""
        self.peak, self.kills = 0, oom_kills()
        with suppress(BrokenPipeError):  # it died after its last task: receiving will tell
            self.connection.send((i, task))

    def receive(self) -> Event:
        try:
            event = self.connection.recv()
        except (EOFError, OSError):  # it died, perhaps in the middle of a word
            return self.bury(None)
        self.heard = time.monotonic()
        if event.kind == "progress":
            self.last = worded(event.value)
        self.busy = event.kind in ("begun", "progress")
        return event

    def cut_off(self, hang: float) -> Event:
        with suppress(ProcessLookupError):
            os.kill(self.pid, STACK)
        stack = b""
        while self.stack.poll(2 * POLL) and (part := os.read(self.stack.fileno(), 1 << 16)):  # it comes in pieces
            stack += part
        return self.bury(hung(hang, self.last, stack.decode(errors="replace")))

    def bury(self, failure: Failure | None) -> Event:
        """The end of the process and of its children; without a `failure` it died by itself."""
        self.end()
        self.busy, self.gone = False, True
        if failure is None and asked():  # it had not yet come to listen
            return Event(self.task, "stopped", "")
        return Event(self.task, "failed", failure or ended(self.process.exitcode, self.peak, self.kills))

    def end(self) -> None:
        end_group(self.pid)
        self.process.kill()
        self.process.join()

    def leave(self) -> None:
        """Politely where it has nothing at hand, else at once."""
        self.connection.close()
        if not self.busy:
            self.process.join(GRACE)
        self.end()


def serve(connection: Connection, stack: Connection, threads: int) -> None:
    """A worker's life: tasks come, events go."""
    end_with_parent()
    listen()
    faulthandler.register(STACK, stack.fileno())
    import torch

    torch.set_num_threads(threads)
    with suppress(EOFError):
        while True:
            i, task = connection.recv()
            connection.send(Event(i, "begun", None))
            connection.send(attempt(i, task, partial(report, connection, i)))


def report(connection: Connection, task: int, value: Any) -> None:
    connection.send(Event(task, "progress", value))
