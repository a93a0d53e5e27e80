"""What came of each of a sweep's tasks: rows and logs on disk, words on the screen."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tefusion.cells import Cell
from tefusion.config import Run
from tefusion.failure import Failure, told
from tefusion.launch import is_first
from tefusion.rows import append, log_of
from tefusion.tasks import Event
from tefusion.watch import Watcher


@dataclass(frozen=True)
class Ledger:
    """The tasks are the `images`, then the `cells`."""

    results: Path
    budget: str
    images: list[Run]
    cells: dict[str, Cell]
    watcher: Watcher
    failed: set[Run] = field(default_factory=set)  # among the images

    def note(self, event: Event) -> None:
        place = event.task - len(self.images)
        if place >= 0:
            self.note_cell(list(self.cells)[place], event)
            return
        image = self.images[event.task]
        if event.kind == "failed":
            self.failed.add(image)
        self.watcher.image(image.seed, event)

    def note_cell(self, name: str, event: Event) -> None:
        from tefusion.cell import clear_checkpoints, describe
        from tefusion.machine import provenance

        if event.kind == "progress":
            return self.watcher.progress(name, event.value)
        if event.kind == "stopped":
            return self.watcher.stopped(name)
        row = describe(self.cells[name], name) | {"budget": self.budget}
        if event.kind == "done":
            row |= event.value | {"status": "done"}
        else:
            row |= {"status": "failed", "reason": self.reason(self.cells[name].run, event.value)} | provenance()
            keep(self.results.parent / log_of(row), event.value)
        if is_first():
            append(self.results, row)
            if event.kind == "done":
                clear_checkpoints(self.results.parent, name)
        self.watcher.finished(name, row)

    def reason(self, run: Run, failure: Failure) -> str:
        from tefusion.image_stage import image_run

        if run.init == "image" and image_run(run) in self.failed:
            return f"image model: {told(failure, image_run(run), image=True)}"
        return told(failure, run)


def keep(path: Path, failure: Failure) -> None:
    """Behind what earlier attempts left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {failure.reason}\n{failure.trace}\n")
