"""Tasks in processes of their own: one that dies fails its task alone, and another takes its place."""

import multiprocessing
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any


@dataclass(frozen=True)
class Event:
    """`kind` is "progress" (any number), then "done" with the result or "failed" with (reason, traceback)."""

    task: int
    kind: str
    value: Any


Send = Callable[[Any], None]  # how a task reports its progress
Work = Callable[..., Any]  # work(*task, send)


def run_here(work: Work, tasks: Sequence[tuple]) -> Iterator[Event]:
    """One after another in this process; progress is dropped."""
    for i, task in enumerate(tasks):
        yield attempt(i, work, task, lambda value: None)


def run_pool(work: Work, tasks: Sequence[tuple], jobs: int, threads: int) -> Iterator[Event]:
    """`jobs` at once, each process with `threads` threads of torch. Processes are spawned and kept."""
    context = multiprocessing.get_context("spawn")
    waiting = list(enumerate(tasks))[::-1]
    workers: dict[Connection, tuple[Any, int]] = {}

    def hand_out(process: Any, connection: Connection) -> None:
        if waiting:
            i, task = waiting.pop()
            workers[connection] = process, i
            with suppress(BrokenPipeError):  # it died after its last task: reading from it will tell
                connection.send((i, work, task))
        else:
            with suppress(BrokenPipeError):
                connection.send(None)
            process.join()

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, threads))  # no daemon: a task may start processes
        process.start()
        theirs.close()
        hand_out(process, ours)

    try:
        for _ in range(min(jobs, len(tasks))):
            start()
        while workers:
            for connection in ready(workers):
                process, i = workers[connection]
                try:
                    event = connection.recv()
                except (EOFError, ConnectionError):
                    del workers[connection]
                    process.join()
                    reason = f"the process ended with exit code {process.exitcode}"
                    yield Event(i, "failed", (reason, reason))
                    if waiting:
                        start()
                    continue
                yield event
                if event.kind != "progress":
                    del workers[connection]
                    hand_out(process, connection)
    finally:  # where the reader of events stops early, nobody works on
        for process, _ in workers.values():
            process.terminate()


def ready(workers: Iterable[Connection]) -> list[Connection]:
    return [connection for connection in wait(list(workers)) if isinstance(connection, Connection)]


def worker(connection: Connection, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    while (order := connection.recv()) is not None:
        i, work, task = order
        connection.send(attempt(i, work, task, partial(progress, connection, i)))


def progress(connection: Connection, task: int, value: Any) -> None:
    connection.send(Event(task, "progress", value))


def attempt(i: int, work: Work, task: tuple, send: Send) -> Event:
    try:
        return Event(i, "done", work(*task, send))
    except Exception as error:
        return Event(i, "failed", (f"{type(error).__name__}: {error}".splitlines()[0], traceback.format_exc()))
