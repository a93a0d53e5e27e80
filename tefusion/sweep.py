"""Many runs: plan the cells, leave out those that are done, train the rest, write what each gave, report."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from tefusion.cells import Cell, Sweep, content, my_part, plan
from tefusion.choices import brief
from tefusion.config import Run
from tefusion.data.source import data_folder
from tefusion.launch import is_first, wait_for_first, world
from tefusion.ledger import Ledger
from tefusion.live import live_tables
from tefusion.lock import locked
from tefusion.report import read_results, write_report
from tefusion.results import is_trial
from tefusion.rows import PATIENCE, is_over, is_set_aside, log_of
from tefusion.stop import Stopped, within
from tefusion.tasks import Event, Task, run_here
from tefusion.tuning import chosen, trials
from tefusion.video import parse_size
from tefusion.watch import label, watch


def sweep(words: Sequence[str]) -> Path:
    """Runs what `words` ask for and returns the report. Cells that are done are never done again.

    Started under a launcher with several processes, all of them train each cell together; else `jobs` cells run at
    once, each in a process of its own. Raises Stopped where it was asked to end, or its `minutes` were over, before all
    cells were tried.
    """
    plans, cells = plan(words)
    tried = trials(cells) if plans.recipe == "tuned" else []
    home = Path(plans.home)
    out = Path(plans.out) if plans.out else home / (plans.budget + "-tuned" * bool(tried))
    results = out / ("results.jsonl" if plans.shard == "0/1" else f"results-{plans.shard.replace('/', 'of')}.jsonl")
    at_the_door(cells)
    with within(plans.minutes), locked(results.with_suffix(".lock")) if is_first() else nullcontext():
        if is_first():
            write_data([*tried, *cells], home)
        wait_for_first()
        turns = [Turn(tried, plans, results, home)] if tried else []
        # A choice waits for every trial, so that it stays as it is; one that fails again and again is set aside.
        for trial in turns * PATIENCE:
            trial.take()
        wait_for_first()
        tests = [row for trial in turns for row in trial.rows()]
        waits = sum(len(trial.everywhere) for trial in turns) - sum(is_over(row) for row in tests)
        if not waits:
            turns.append(Turn(chosen(cells, tests) if tried else cells, plans, results, home))
            turns[-1].take()
        if is_first():
            report(out, turns)
    if unfinished := sum(turn.unfinished for turn in turns):
        raise Stopped(f"{unfinished} of {sum(len(turn.named) for turn in turns)} cells are left")
    if waits:
        raise Stopped(f"the choice of learning rates waits for {waits} trials of other shards")
    return out / "report.md"


class Turn:
    """Cells that may be trained in any order: all of a sweep's, or first its trials and then what they choose."""

    def __init__(self, cells: Sequence[Cell], plans: Sweep, results: Path, home: Path):
        self.plans, self.results, self.home = plans, results, home
        self.everywhere = {cell.id(content(data_folder(cell.run.data, home))): cell for cell in cells}
        self.named = dict(my_part([*self.everywhere.items()], plans.shard))
        self.unfinished, self.wrote = 0, False

    def take(self) -> None:
        """Trains what is left of this shard's cells, unless it was stopped before."""
        if self.unfinished:
            return
        wait_for_first()
        rows = [row for row in self.rows() if row["id"] in self.named]
        left = to_do(self.named, rows, self.plans.retry and not self.wrote)
        clear_behind(self.results.parent, rows)
        wait_for_first()  # all have read what the first will go on writing
        if left:
            self.unfinished = train_cells(left, len(self.named), self.plans, self.results, self.home)
            self.wrote = True

    def rows(self) -> list[dict]:
        """Those of its cells, whichever shard trained them."""
        return [row for row in rows_of(self.results.parent) if row["id"] in self.everywhere]


def at_the_door(cells: Sequence[Cell]) -> None:
    """What the benchmarks lack is said before anything trains."""
    for evaluation in dict.fromkeys(cell.evaluation for cell in cells if cell.evaluation.eval):
        from tefusion.exam import door

        for line in door(evaluation, [cell.run for cell in cells if cell.evaluation == evaluation]):
            if is_first():
                print(line, flush=True)


def write_data(cells: Sequence[Cell], home: Path) -> None:
    """Raises ValueError where a folder has nothing to try learning rates on."""
    for data in dict.fromkeys(cell.run.data for cell in cells):
        data_folder(data, home)
    for run in (cell.run for cell in cells if cell.control == "trial"):
        if not (data_folder(run.data, home) / run.split).is_dir():
            raise ValueError(
                f"recipe=tuned needs a folder {run.split} in {brief(run.data)}, to choose learning rates by"
            )


def rows_of(out: Path) -> list[dict]:
    return read_results(out) if any(out.glob("results*.jsonl")) else []


def to_do(named: Mapping[str, Cell], rows: Sequence[Mapping], retry: bool) -> dict[str, Cell]:
    """The longest first, so that no core waits long for another at the end."""
    over = {row["id"] for row in rows if (row["status"] == "done" if retry else is_over(row))}
    return dict(sorted(((n, c) for n, c in named.items() if n not in over), key=lambda item: -pixels(item[1].run)))


def clear_behind(out: Path, rows: Sequence[Mapping]) -> None:
    """The checkpoints of cells that are done, where a crash came between their row and this."""
    done = {row["id"] for row in rows if row["status"] == "done"}
    if kept := done & {path.parent.name for path in out.glob("cells/*/*checkpoints*")}:
        from tefusion.cell import clear_checkpoints

        for name in kept:
            clear_checkpoints(out, name)


def pixels(run: Run) -> int:
    height, width = parse_size(run.size)
    return run.times * run.steps * run.batch * run.n_input * height * width


def train_cells(left: dict[str, Cell], planned: int, plans: Sweep, results: Path, home: Path) -> int:
    """Image models, each once, and each cell as soon as its own is there. Returns how many of those `left` still are.

    A process's threads depend on how many cells are `planned`, not on how many are left: a sweep that is taken up
    gives the same numbers to the last bit.
    """
    from tefusion.cell import describe, run_cell, run_images
    from tefusion.image_stage import image_run

    out = results.parent
    images = list(dict.fromkeys(image_run(cell.run) for cell in left.values() if cell.run.init == "image"))
    image_work, cell_work = (partial(work, save_every=plans.save_every) for work in (run_images, run_cell))
    tasks = [Task(image_work, (image, home)) for image in images]
    for name, cell in left.items():
        after = images.index(image_run(cell.run)) if cell.run.init == "image" else None
        tasks.append(Task(cell_work, (cell, name, out, home, plans.log_with), after))
    with watch(rows_of(out), [describe(cell, name) for name, cell in left.items()], is_first()) as watcher:
        ledger = Ledger(results, plans.budget, images, left, watcher)
        for event in events(tasks, planned, plans, ledger):
            ledger.note(event)
    return len(watcher.pending)


def events(tasks: Sequence[Task], planned: int, plans: Sweep, ledger: Ledger) -> Iterator[Event]:
    jobs = min(planned, jobs_at_once(plans.jobs))
    if jobs:
        from tefusion.pool import run_pool

        return run_pool(tasks, jobs, max(1, (os.cpu_count() or 1) // jobs), plans.hang)
    # The others would only end the first before it has written what hangs.
    return run_here(tasks, plans.hang if is_first() else float("inf"), ledger.note)


def jobs_at_once(asked: int) -> int:
    """0: this process does the work itself, as under a launcher of several processes or on a GPU."""
    import torch

    if world() > 1 or (asked == 0 and torch.cuda.is_available()):
        return 0
    return asked or os.cpu_count() or 1


def report(out: Path, turns: Sequence[Turn]) -> None:
    from rich.console import Console

    path, rows = out / "report.md", rows_of(out)
    if not rows:
        return
    if any(turn.wrote for turn in turns) or not path.exists():
        write_report(out)
    Console().print(*live_tables([row for row in rows if not is_trial(row)]))
    for row in rows:
        if is_set_aside(row) and any(row["id"] in turn.named for turn in turns):
            print(f"set aside after {row['failures']} failures (retry=true tries it again): {label(row)}")
            print(f"  {row['reason']}\n  {out / log_of(row)}")
    print(f"report: {path}")
