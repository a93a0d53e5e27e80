"""Accuracy over the compression ratio, like figure 6 of the paper: a line a method, baseline and controls behind."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tefusion.results import METHODS, mean, parts
from tefusion.score import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; markers say the same once more.
COLOURS = ("#333333", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7A5195", "#8C6D31")
MARKERS = "osD^vPX*hp"
GREY = "#8A8A8A"
TITLES = {"text_only": "text only", "one_frame": "one frame", "fewer_frames": "fewer frames (N/k)"}
TITLES["lower_resolution"] = "lower resolution"
INK = "#222222"


def write_figure(lines: Sequence[Mapping], folder: str | Path) -> list[Path]:
    """figure.png and figure.svg of the lines of `table`; nothing is written where no method has a finished cell."""
    import matplotlib as mpl

    # A fixed salt and no date: the same results give the same file.
    style: Any = {"font.size": 10, "font.family": "DejaVu Sans", "svg.hashsalt": "tefusion", "svg.fonttype": "none"}
    if not any(line["k"] > 1 for line in lines):
        return []
    with mpl.rc_context(style):
        figure = draw(lines)
        paths = [Path(folder) / "figure.png", Path(folder) / "figure.svg"]
        for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=metadata)
            replace_file(path, buffer.getvalue())
    return paths


def draw(lines: Sequence[Mapping]) -> "Figure":
    """A panel for every number of input frames, and one for every fixed decoder length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = panel_lines(lines)
    figure = Figure(figsize=(7.4 * len(panels), 4.6), facecolor="white")
    FigureCanvasAgg(figure)
    for place, (title, chosen) in enumerate(panels.items()):
        left = (place + 0.085) / len(panels)
        axes = figure.add_axes((left, 0.15, 0.62 / len(panels), 0.74))
        _panel(axes, title, chosen)
    note = "Bars and band: standard error of the mean, seeds and questions together."
    if max(len(line["by_seed"]) for line in lines) == 1:
        note = "Bars and band: standard error over questions. One seed: training noise is not in them."
    figure.text(0.085 / len(panels), 0.02, note, fontsize=8, color="#666666")
    return figure


def panel_lines(lines: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """{title: lines} by protocol: fixed input frames first, then fixed decoder length."""
    methods = [line for line in lines if not parts(line)]
    controls = [line for line in lines if parts(line)]
    panels: dict[str, list[Mapping]] = {}
    for frames in sorted({line["n_input"] for line in methods if line["by_input"]}):
        chosen = [line for line in methods if line["n_input"] == frames]
        if any(line["k"] > 1 for line in chosen):
            panels[f"{frames} input frames"] = chosen + controls
    for length in sorted({length for line in methods for length in line["n_per_k"]}):
        chosen = [line for line in lines if matched(line, length)]
        if any(line["k"] > 1 for line in chosen):
            panels[f"{length} k input frames, same decoder length"] = chosen
    return panels


def matched(line: Mapping, length: int) -> bool:
    """Whether the line belongs to the protocol that gives the decoder `length` frames' worth of tokens."""
    return line["n_input"] == length * line["k"] and parts(line) <= {"one_frame", "fewer_frames"}


def method_name(line: Mapping, lines: Sequence[Mapping]) -> str:
    """The compressor, and whatever else sets it apart among the lines of the same compressor and k."""
    settings = {**line["settings"], "size": line["size"], **{name: line[name] for name in ("data", "encoder", "steps")}}
    others = [{**other["settings"], **other} for other in lines if other["compressor"] == line["compressor"]]
    others = [other for other in others if not parts(other)]
    apart = [name for name, value in settings.items() if any(other.get(name, value) != value for other in others)]
    return " ".join([line["compressor"], *(f"{name}={settings[name]}" for name in apart)])


def _panel(axes: "Axes", title: str, lines: list[Mapping]) -> None:
    from matplotlib.ticker import NullLocator

    methods = [line for line in lines if not parts(line) and line["k"] > 1]
    ratios = sorted({line["k"] for line in methods})
    axes.set_xscale("log", base=2)
    axes.set_xlim(ratios[0] * 2**-0.3, ratios[-1] * 2**0.3)
    axes.set_xticks(ratios, [str(k) for k in ratios])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("temporal compression ratio k")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(f"{title}, {methods[0]['questions']:,} questions", loc="left", fontsize=10, color=INK)
    labels = [*_controls(axes, lines, ratios), *_baseline(axes, lines), *_methods(axes, methods)]
    heights = [height for _, height, _, _ in labels]
    tops = [100 * line["accuracy"] for line in lines]
    low, high = min(heights + tops) - 4, max(heights + tops) + 4
    axes.set_ylim(max(low, -2), min(high, 102))
    _label(axes, labels)


def _controls(axes: "Axes", lines: list[Mapping], ratios: list[int]) -> list[tuple]:
    """Thin and grey: controls without a ratio run across, the others stand at the ratio of equal decoder tokens."""
    labels = []
    at = {line["l_decoder"]: line["k"] for line in lines if not parts(line) and line["k"] in ratios}
    for style, marker, part in zip(("-", "-.", "-", "-."), ("", "", "1", "2"), TITLES, strict=True):
        chosen = [line for line in lines if part in parts(line)]
        if part in ("fewer_frames", "lower_resolution"):
            points = sorted(
                (at[line["l_decoder"]], 100 * line["accuracy"]) for line in chosen if line["l_decoder"] in at
            )
        else:
            level = mean(line["accuracy"] for line in chosen)
            points = [] if level is None else [(x, 100 * level) for x in axes.get_xlim()]
        if points:
            look: dict[str, Any] = {"color": GREY, "linestyle": style, "marker": marker, "linewidth": 1}
            axes.plot(*zip(*points, strict=True), markersize=7, zorder=2, **look)
            labels.append((TITLES[part], points[-1][1], points[-1][0], look))
    chance = mean(line["chance"] for line in lines)
    if chance is not None:
        look = {"color": GREY, "linestyle": ":", "marker": "", "linewidth": 1.6}
        axes.axhline(100 * chance, zorder=1.5, **look)
        labels.append(("chance", 100 * chance, axes.get_xlim()[1], look))
    return labels


def _baseline(axes: "Axes", lines: list[Mapping]) -> list[tuple]:
    base = [line for line in lines if not parts(line) and line["k"] == 1]
    base = base or [line for line in lines if line["k"] == 1 and "same decoder" in axes.get_title(loc="left")]
    labels = []
    for line in base:
        level, error = 100 * line["accuracy"], 100 * (line["error"] or 0)
        look: dict[str, Any] = {"color": INK, "linestyle": "--", "marker": "", "linewidth": 1.4}
        axes.axhspan(level - error, level + error, color=INK, alpha=0.10, linewidth=0, zorder=1)
        axes.axhline(level, zorder=2.5, **look)
        labels.append((f"baseline, {line['n_input']} frames", level, axes.get_xlim()[1], look))
    return labels


def _methods(axes: "Axes", lines: list[Mapping]) -> list[tuple]:
    names = list(dict.fromkeys(method_name(line, lines) for line in lines))
    looks = _looks(names)
    labels = []
    for place, name in enumerate(names):
        chosen = sorted((line for line in lines if method_name(line, lines) == name), key=lambda line: line["k"])
        # Side by side: bars at the same k would hide each other.
        x = [line["k"] * 2 ** (0.035 * (place - (len(names) - 1) / 2)) for line in chosen]
        y = [100 * line["accuracy"] for line in chosen]
        bars = [100 * (line["error"] or 0) for line in chosen]
        look = {**looks[name], "linestyle": "-", "linewidth": 1.8}
        axes.errorbar(x, y, bars, capsize=2, elinewidth=1.1, markersize=6, markeredgecolor="white", zorder=3, **look)
        labels.append((name, y[-1], x[-1], look))
    return labels


def _looks(names: list[str]) -> dict[str, dict]:
    """A method of the paper looks the same in every figure; others take what is left, in order."""
    left = [place for place in range(len(COLOURS)) if place >= len(METHODS) or METHODS[place] not in names]
    looks, spare = {}, 0
    for name in names:
        if name in METHODS:
            place = METHODS.index(name)
        else:
            place, spare = left[spare % len(left)] if left else spare % len(COLOURS), spare + 1
        looks[name] = {"color": COLOURS[place], "marker": MARKERS[place % len(MARKERS)]}
    return looks


def _label(axes: "Axes", labels: list[tuple]) -> None:
    """Names stand right of the axes at the height of their line's end, moved apart until none touches another."""
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height * 72 / axes.figure.dpi  # points
    ends = [(end - low) / (high - low) for _, end, _, _ in labels]
    order = np.argsort(ends, kind="stable")
    places = spread_out([ends[i] for i in order], gap=14 / height)
    blend = axes.get_yaxis_transform()
    for i, place in zip(order, places, strict=True):
        name, end, x, look = labels[i]
        y = low + place * (high - low)
        edge = np.log2(x / axes.get_xlim()[0]) / np.log2(axes.get_xlim()[1] / axes.get_xlim()[0])
        axes.plot(
            [edge, 1.0, 1.04], [end, end, y], color=look["color"], lw=0.6, alpha=0.6, transform=blend, clip_on=False
        )
        sample = {**look, "markeredgecolor": "white" if look["color"] != GREY else GREY}
        axes.plot([1.05, 1.085, 1.12], [y, y, y], markevery=[1], transform=blend, clip_on=False, markersize=6, **sample)
        axes.text(1.135, y, name, transform=blend, va="center", color=INK, fontsize=9.5)


def spread_out(ends: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as possible until neighbours stand `gap` apart: blocks share a mean."""
    blocks: list[list[float]] = []  # [centre, members]
    for end in ends:
        blocks.append([end, 1])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < gap * (blocks[-1][1] + blocks[-2][1]) / 2:
            (right, many), (left, some) = blocks.pop(), blocks.pop()
            blocks.append([(left * some + right * many) / (some + many), some + many])
    return [centre + gap * (i - (many - 1) / 2) for centre, many in blocks for i in range(int(many))]
