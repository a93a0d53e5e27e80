"""The table that fills up while a sweep runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tefusion.results import mean, method_order
from tefusion.score import CATEGORIES, category_order
from tefusion.wording import number, percent

if TYPE_CHECKING:
    from rich.table import Table


def live_table(rows: Iterable[Mapping], pending: Iterable[Mapping] = ()) -> "Table":
    """A line a method and ratio; `pending` cells carry at least compressor, k and control.

    Reads no answers, so that it can be drawn after every cell.
    """
    from rich.table import Table

    cells = sorted([*rows, *({"status": "pending", **cell} for cell in pending)], key=method_order)
    names = category_order(name for row in cells for name in row.get("by_category") or ())
    view = Table(header_style="bold", pad_edge=False)
    view.add_column("method", no_wrap=True)
    for head in ["k", "done", "acc", "±", *(CATEGORIES.get(name, name) for name in names), "tok", "enc ms", "s"]:
        view.add_column(head, justify="right", no_wrap=True)
    groups: dict[tuple, list[Mapping]] = {}
    for cell in cells:
        groups.setdefault((cell.get("control", ""), cell["compressor"], cell["k"], cell.get("n_input")), []).append(
            cell
        )
    for (control, compressor, k, _), group in groups.items():
        method = control.replace("_", " ").replace(",", ", ") or compressor
        view.add_row(method, str(k), *_progress(group), *_scores(group, names))
    return view


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
    costs = [mean(row.get(name) for row in done) for name in ("l_decoder", "encoder_ms", "seconds")]
    return scores + [number(value, "") for value in costs]
