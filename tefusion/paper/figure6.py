"""Figure 6 of the paper: accuracy over the compression ratio at a fixed number of input frames, a panel a benchmark."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tefusion.data.paper import BENCHMARKS, paper_tables
from tefusion.drawing import INK, blank, looks_of, ratios_axis, tidy
from tefusion.figure import method_name
from tefusion.paper.benchmarks import TITLES
from tefusion.results import METHODS, parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
PAPER: dict[str, Any] = {"linestyle": "--", "linewidth": 1, "alpha": 0.55, "markersize": 3.5}
OURS: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8, "markersize": 5.5, "markeredgecolor": "white", "capsize": 2}


def draw(found: Mapping[str, list[dict]], frames: int) -> "Figure":
    """`found` holds the lines of each benchmark; the paper's own are dashed."""
    chosen = {name: lines_at(lines, frames) for name, lines in found.items()}
    printed = {name: printed_at(name, frames) for name in BENCHMARKS}
    names = [name for name in TITLES if chosen.get(name) or printed.get(name)]
    labels = list(dict.fromkeys(label for name in names for label in [*chosen.get(name, {}), *printed.get(name, {})]))
    labels.sort(key=lambda label: METHODS.index(label) if label in METHODS else len(METHODS))
    looks = looks_of(labels)
    across, down = min(COLUMNS, len(names)), -(-len(names) // COLUMNS)
    figure = blank(3.6 * across, 2.9 * down + 0.6)
    grid = figure.subplots(down, across, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        panel(axes, TITLES[names[place]], chosen.get(names[place], {}), printed.get(names[place], {}), looks)
    figure.tight_layout(rect=(0, 0.6 / (2.9 * down + 0.6), 1, 1))
    legend(figure, labels, looks, any(chosen.values()), any(printed.get(name) for name in names))
    return figure


def panel(
    axes: "Axes",
    title: str,
    ours: Mapping[str, Sequence[Mapping]],
    printed: Mapping[str, Sequence[tuple[int, float]]],
    looks: Mapping[str, Mapping],
) -> None:
    ratios = {line["k"] for lines in ours.values() for line in lines} | {
        k for rows in printed.values() for k, _ in rows
    }
    ratios_axis(axes, sorted(ratios - {1}) or [1])
    tidy(axes)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("compression ratio k")
    axes.set_ylabel("accuracy (%)")
    for label, rows in printed.items():
        flat = rows if rows[0][0] > 1 else [(x, rows[0][1]) for x in axes.get_xlim()]
        marker = looks[label]["marker"] if rows[0][0] > 1 else ""
        axes.plot(*zip(*flat, strict=True), color=looks[label]["color"], marker=marker, **PAPER)
    for label, lines in ours.items():
        values = [100 * line["accuracy"] for line in lines]
        bars = [100 * (line["error"] or 0) for line in lines]
        if lines[0]["k"] == 1:  # the baseline has no ratio: it runs across
            axes.axhspan(values[0] - bars[0], values[0] + bars[0], color=looks[label]["color"], alpha=0.1, linewidth=0)
            axes.axhline(values[0], color=looks[label]["color"], linewidth=1.4)
        else:
            axes.errorbar([line["k"] for line in lines], values, bars, zorder=3, **looks[label], **OURS)


def legend(figure: "Figure", labels: Sequence[str], looks: Mapping[str, Mapping], ours: bool, paper: bool) -> None:
    from matplotlib.lines import Line2D

    names = {"none": "baseline (none)"}
    handles = [Line2D([], [], label=names.get(label, label), linewidth=1.8, **looks[label]) for label in labels]
    handles += [Line2D([], [], color=INK, label="ours, bars: standard error")] * ours
    handles += [Line2D([], [], color=INK, label="the paper's", linestyle="--", linewidth=1)] * paper
    figure.legend(handles=handles, loc="lower center", ncols=min(4, len(handles)), frameon=False, fontsize=8.5)


def lines_at(lines: Sequence[Mapping], frames: int) -> dict[str, list[Mapping]]:
    found: dict[str, list[Mapping]] = {}
    for line in sorted(lines, key=lambda line: line["k"]):
        if line["n_input"] == frames and line["by_input"] and not parts(line):
            found.setdefault(method_name(line, lines), []).append(line)
    return found


def printed_at(benchmark: str, frames: int) -> dict[str, list[tuple[int, float]]]:
    """(k, percent) of table 8 by method, which figure 6 draws."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in paper_tables():
        if row["table"] == "8" and int(row["n_input"]) == frames:
            found.setdefault(row["method"], []).append((int(row["k"]), float(row[benchmark])))
    return {method: sorted(rows) for method, rows in found.items()}
