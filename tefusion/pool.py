"""Tasks in processes of their own: one that dies fails its task alone, and another takes its place."""

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
            connection.send((i, work, task))
            workers[connection] = process, i
        else:
            connection.send(None)
            process.join()

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, threads), daemon=True)
        process.start()
        theirs.close()
        hand_out(process, ours)

    for _ in range(min(jobs, len(tasks))):
        start()
    while workers:
        for connection in wait(list(workers)):
            process, i = workers[connection]
            try:
                event = connection.recv()
            except EOFError:
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


def worker(connection: Connection, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    while (order := connection.recv()) is not None:
        i, work, task = order
        connection.send(attempt(i, work, task, lambda value, i=i: connection.send(Event(i, "progress", value))))


def attempt(i: int, work: Work, task: tuple, send: Send) -> Event:
    try:
        return Event(i, "done", work(*task, send))
    except Exception as error:
        return Event(i, "failed", (f"{type(error).__name__}: {error}".splitlines()[0], traceback.format_exc()))
