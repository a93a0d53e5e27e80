"""Accuracy against what a video costs: measured milliseconds, decoder tokens, FLOPs, memory."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tefusion.drawing import GREY, INK, blank, looks_of, tidy
from tefusion.naming import TITLES, method_name
from tefusion.results import MILLISECONDS, parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTROLS = ("fewer_frames", "lower_resolution")  # text alone and one frame are no way to save


def milliseconds(line: Mapping) -> float | None:
    times = [line[name] for name in MILLISECONDS]
    return None if None in times else sum(times)


COSTS: dict[str, Callable[[Mapping], float | None]] = {
    "encoder + compressor + prefill, ms a video": milliseconds,
    "decoder tokens a video": lambda line: line["l_decoder"],
    "GFLOPs of a forward pass": lambda line: line["flops"] and line["flops"] / 1e9,
    "peak memory in training, MB": lambda line: line["peak_memory_mb"],
}


def draw(lines: Sequence[Mapping], title: str) -> "Figure":
    figure = blank(9.6, 7.6)
    chosen = [line for line in lines if not parts(line) or parts(line) & set(CONTROLS)]
    named = {label: [line for line in chosen if name_of(line, lines) == label] for label in names(chosen, lines)}
    looks = looks_of([label for label in named if label not in TITLES.values()])
    looks |= {label: {"color": GREY, "marker": "x"} for label in named if label in TITLES.values()}
    for axes, (cost, of) in zip(figure.subplots(2, 2).flat, COSTS.items(), strict=True):
        panel(axes, cost, of, named, looks)
    figure.suptitle(
        f"{title}; numbers: k, or frames (f) without compression", x=0.06, ha="left", fontsize=11, color=INK
    )
    figure.tight_layout(rect=(0, 0.07, 1, 0.98))
    handles = {text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=min(5, len(handles)), frameon=False, fontsize=9
    )
    return figure


def panel(
    axes: "Axes",
    cost: str,
    of: Callable[[Mapping], float | None],
    named: Mapping[str, Sequence[Mapping]],
    looks: Mapping[str, Mapping],
) -> None:
    tidy(axes)
    axes.set_xlabel(cost)
    axes.set_ylabel("accuracy (%)")
    seen = []
    for label, lines in named.items():
        known = placed(lines, of)
        if not known:
            continue
        x, y = [x for x, _ in known], [100 * line["accuracy"] for _, line in known]
        bars = [100 * (line["error"] or 0) for _, line in known]
        axes.errorbar(x, y, bars, label=label, linewidth=1.2, elinewidth=0.9, markersize=5.5, **looks[label])
        seen += x
        for place, height, (_, line) in zip(x, y, known, strict=True):
            text = f"{line['n_input']}f" if line["k"] == 1 else str(line["k"])
            axes.annotate(
                text, (place, height), (4, 4), textcoords="offset points", fontsize=7, color=looks[label]["color"]
            )
    axes.margins(x=0.08)
    if seen and max(seen) > 4 * min(seen):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def placed(lines: Sequence[Mapping], of: Callable[[Mapping], float | None]) -> list[tuple[float, Mapping]]:
    """In the order of k, or of the controls' frames; what was not measured is left out."""
    known = [(cost, line) for line in lines if (cost := of(line))]
    return sorted(known, key=lambda pair: (pair[1]["k"], pair[1]["n_input"]))


def names(chosen: Sequence[Mapping], lines: Sequence[Mapping]) -> list[str]:
    return list(dict.fromkeys(name_of(line, lines) for line in chosen))


def name_of(line: Mapping, lines: Sequence[Mapping]) -> str:
    part = next((part for part in CONTROLS if part in parts(line)), None)
    return TITLES[part] if part else method_name(line, lines)
