"""The table that fills up while a sweep runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from tefusion.config import Run
from tefusion.results import mean, method_order, parts, pruner
from tefusion.score import CATEGORIES, category_order
from tefusion.wording import number, percent

if TYPE_CHECKING:
    from rich.table import Table


def live_tables(rows: Iterable[Mapping], pending: Iterable[Mapping] = ()) -> list["Table"]:
    """That of fixed lengths, and behind it one of what was pruned, where there is any."""
    found = list(rows), list(pending)
    any_pruned = any(pruner(row) != "none" for part in found for row in part)
    return [live_table(*found, pruned=pruned) for pruned in (False, True)[: 1 + any_pruned]]


def live_table(rows: Iterable[Mapping], pending: Iterable[Mapping] = (), pruned: bool = False) -> "Table":
    """A line a method and ratio; `pending` cells carry at least compressor, k and control. Runs with a pruner are in
    no table but their own.

    Reads no answers, so that it can be drawn after every cell.
    """
    from rich.table import Table

    found = [*rows, *({"status": "pending", **cell} for cell in pending)]
    cells = sorted((cell for cell in found if (pruner(cell) != "none") == pruned), key=method_order)
    names = category_order(name for row in cells for name in row.get("by_category") or ())
    view = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    view.add_column("method", no_wrap=True)
    for head in ["k", "done", "acc", "±", *(CATEGORIES.get(name, name) for name in names), "tok", "enc ms", "s"]:
        view.add_column(head, justify="right", no_wrap=True)
    groups: dict[tuple, list[Mapping]] = {}
    for cell in cells:
        groups.setdefault((_name(cell), cell["k"], cell.get("n_input"), cell.get("size")), []).append(cell)
    for (name, k, *_), group in groups.items():
        view.add_row(name, "" if parts(group[0]) - {"trial"} else str(k), *_progress(group), *_scores(group, names))
    return view


def _name(cell: Mapping) -> str:
    """A control says what it leaves; one that plays several parts goes by the first. 80 columns hold the table."""
    part = cell.get("control", "").split(",")[0]
    left = {
        "trial": f"{cell['compressor']} trial",
        "fewer_frames": f"{cell.get('n_input')} frames",
        "lower_resolution": f"size {cell.get('size')}",
    }
    return (left.get(part, part.replace("_", " ")) or cell["compressor"]) + apart(cell)


def apart(cell: Mapping) -> str:
    """What sets a cell apart from one that is trained as by default, a pruner included."""
    run = asdict(Run()) | (cell.get("settings") or {})
    said = {
        f"{run['times']}x": run["times"] != Run.times,
        "= FLOPs": run["equal"] != Run.equal,
        run["init"]: run["init"] != Run.init,
        f"lr x {run['lr_scale']:g}": run["lr_scale"] != Run.lr_scale,
        pruner(cell): pruner(cell) != "none",
        "(test)": pruner(cell) != "none" and run.get("pruned") == "test",
    }
    return "".join(f" {words}" for words, differs in said.items() if differs)


def _progress(group: Sequence[Mapping]) -> list[str]:
    done = sum(row["status"] == "done" for row in group)
    failed = sum(row["status"] == "failed" for row in group)
    return [f"{done}/{len(group)}" + (f" [red]{failed} failed[/red]" if failed else "")]


def _scores(group: Sequence[Mapping], names: Sequence[str]) -> list[str]:
    done = [row for row in group if row["status"] == "done"]
    accuracies = [row["accuracy"] for row in done]
    # One seed shows the error of its questions, several their spread: the only honest figure that each has.
    spread = float(np.std(accuracies, ddof=1)) if len(done) > 1 else mean(row["stderr"] for row in done)
    scores = [percent(mean(accuracies), ""), percent(spread, "")]
    scores += [percent(mean(row["by_category"].get(name) for row in done), "", 0) for name in names]
    seconds = mean(row.get("seconds") for row in done)
    costs = [mean(row.get(name) for row in done) for name in ("l_decoder", "encoder_ms")]
    return [*scores, *(number(value, "") for value in costs), "" if seconds is None else f"{seconds:.0f}"]
