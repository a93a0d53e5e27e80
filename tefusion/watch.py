"""What a person sees while a sweep runs: a table that fills up on a terminal, a line a cell elsewhere."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tefusion.live import apart, live_tables
from tefusion.results import is_trial


@dataclass
class Watcher:
    """`pending` rows, by their id, wait for their result; `running` says how far each of those under way is."""

    rows: list[Mapping]
    pending: dict[str, Mapping]
    lines: bool = False
    running: dict[str, str] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)
    cells: int = 0

    def image(self, seed: int, event: Any) -> None:
        name = f"image model, seed {seed}"
        if event.kind == "progress":
            self.running[name] = step(event.value)
            return
        self.running.pop(name, None)
        if self.lines:
            self.say(f"{name}: {event.kind}" + (f": {event.value.reason}" if event.kind == "failed" else ""))

    def progress(self, cell: str, value: Mapping) -> None:
        self.running[cell] = f"{label(self.pending[cell])}: {step(value)}"

    def stopped(self, cell: str) -> None:
        self.running.pop(cell, None)
        if self.lines:
            self.say(f"{label(self.pending[cell])}: stopped")

    def finished(self, cell: str, row: Mapping) -> None:
        self.running.pop(cell, None)
        self.pending.pop(cell)
        self.rows.append(row)
        self.cells += 1
        if self.lines:
            accuracy = accuracies(row) if row["status"] == "done" else f"failed: {row['reason']}"
            self.say(f"{label(row)}: {accuracy} ({self.left()})")

    def left(self) -> str:
        """How many cells are left, and for how long by the pace so far."""
        seconds = (time.monotonic() - self.start) / max(1, self.cells) * len(self.pending)
        eta = f", about {seconds / 60:.0f} min" if self.cells and self.pending else ""
        return f"{len(self.pending)} left{eta}"

    def say(self, text: str) -> None:
        print(text, flush=True)

    def table(self) -> Any:
        from rich.console import Group

        return Group(*live_tables(self.rows, self.pending.values()), "", *self.running.values(), self.left())


def step(value: Mapping) -> str:
    if "waiting" in value:
        return f"waits, since {value['waiting']}"
    if "answered" in value:
        return f"{value['answered']}/{value['questions']} questions answered"
    return f"step {value['step']}/{value['steps']}, loss {value['loss']:.3f}, accuracy {100 * value['accuracy']:.0f} %"


def accuracies(row: Mapping) -> str:
    asked = [f"{name} {100 * score['accuracy']:.1f} %" for name, score in (row.get("scores") or {}).items()]
    return ", ".join([f"{100 * row['accuracy']:.1f} %", *asked])


def label(row: Mapping) -> str:
    method = f"{row['compressor']} k={row['k']}"
    name = f"{method} trial" if is_trial(row) else row["control"].replace("_", " ").replace(",", ", ") or method
    frames = f"{row['n_input']} frame" + "s" * (row["n_input"] != 1)
    return f"{name}{apart(row)}, {frames} at {row['size']} px, seed {row['seed']}"


@contextmanager
def watch(rows: Sequence[Mapping], pending: Sequence[Mapping], shown: bool) -> Iterator[Watcher]:
    """`shown` is false in all processes of a launch but the first."""
    from rich.console import Console
    from rich.live import Live

    terminal = shown and Console().is_terminal
    watcher = Watcher(list(rows), {str(row["id"]): row for row in pending}, lines=shown and not terminal)
    if not terminal:
        yield watcher
        return
    with Live(get_renderable=watcher.table, refresh_per_second=2):
        yield watcher
