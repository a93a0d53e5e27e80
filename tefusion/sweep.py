"""Many runs: plan the cells, leave out those that are done, train the rest, write what each gave, report."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tefusion.cells import Cell, Sweep, content, my_part, plan
from tefusion.data.source import data_folder
from tefusion.launch import is_first, wait_for_first, world
from tefusion.report import live_table, read_results, write_report
from tefusion.results import ResultsError
from tefusion.watch import watch


def sweep(words: Sequence[str]) -> Path:
    """Runs what `words` ask for and returns the report. Cells that are done are never done again.

    Started under a launcher with several processes, all of them train each cell together; else `jobs` cells run at
    once, each in a process of its own.
    """
    plans, cells = plan(words)
    home = Path(plans.home)
    out = Path(plans.out) if plans.out else home / plans.budget
    if is_first():
        write_data(cells, home)
    wait_for_first()
    named = {cell.id(content(data_folder(cell.run.data, home))): cell for cell in my_part(cells, plans.shard)}
    done = {row["id"] for row in rows_of(out) if row["status"] == "done"}
    left = {name: cell for name, cell in named.items() if name not in done}
    if left:
        train_cells(left, plans, out, home)
    return report(out, wrote=bool(left)) if is_first() else out / "report.md"


def write_data(cells: Sequence[Cell], home: Path) -> None:
    for data in dict.fromkeys(cell.run.data for cell in cells):
        data_folder(data, home)


def rows_of(out: Path) -> list[dict]:
    try:
        return read_results(out)
    except ResultsError:
        if any(out.glob("results*.jsonl")):
            raise
        return []


def train_cells(left: dict[str, Cell], plans: Sweep, out: Path, home: Path) -> None:
    """Image models first, each once, then the cells that start from them."""
    from tefusion.cell import describe, run_cell, run_images
    from tefusion.image_stage import image_run
    from tefusion.machine import provenance
    from tefusion.pool import run_here, run_pool

    jobs = jobs_at_once(plans.jobs)
    out.mkdir(parents=True, exist_ok=True)
    results = out / ("results.jsonl" if plans.shard == "0/1" else f"results-{plans.shard.replace('/', 'of')}.jsonl")

    def run(work: Callable, tasks: list[tuple]) -> Iterator:
        if jobs == 0:
            return run_here(work, tasks)
        return run_pool(work, tasks, jobs, threads=max(1, (os.cpu_count() or 1) // min(jobs, len(tasks))))

    images = list(dict.fromkeys(image_run(cell.run) for cell in left.values() if cell.run.init == "image"))
    names = list(left)
    with watch(rows_of(out), [describe(cell, name) for name, cell in left.items()], is_first()) as watcher:
        for event in run(partial(run_images, save_every=plans.save_every), [(image, home) for image in images]):
            watcher.image(images[event.task].seed, event)
        work = partial(run_cell, save_every=plans.save_every)
        for event in run(work, [(left[name], name, out, home, plans.log_with) for name in names]):
            name = names[event.task]
            if event.kind == "progress":
                watcher.progress(name, event.value)
                continue
            row = describe(left[name], name) | {"budget": plans.budget}
            if event.kind == "done":
                row |= event.value | {"status": "done"}
            else:
                reason, trace = event.value
                row |= {"status": "failed", "reason": reason} | provenance()
                keep_trace(out / "cells" / name / "error.log", trace)
            if is_first():
                append(results, row)
            watcher.finished(name, row)


def keep_trace(path: Path, trace: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(trace, encoding="utf-8")


def append(path: Path, row: dict[str, Any]) -> None:
    """One line, on disk before the next cell starts; a line that a crash tore before is closed first."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def jobs_at_once(asked: int) -> int:
    """0: this process does the work itself, as under a launcher of several processes or on a GPU."""
    import torch

    if world() > 1 or (asked == 0 and torch.cuda.is_available()):
        return 0
    return asked or os.cpu_count() or 1


def report(out: Path, wrote: bool) -> Path:
    from rich.console import Console

    path = out / "report.md"
    if wrote or not path.exists():
        write_report(out)
    Console().print(live_table(read_results(out)))
    print(f"report: {path}")
    return path
